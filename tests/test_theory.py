"""exp.theory: verdicts by their rules, measures on small runs, pages from their JSON."""

import json
import math
from pathlib import Path

import pytest
import torch

from exp.theory import __main__ as command
from exp.theory import training
from exp.theory.spectra import sign_spectrum, update_spectrum

KEPT = Path("outputs/paper/theory")
NAMES = list(command.statements())


def test_every_statement_says_what_it_tests_and_by_which_rule():
    assert set(NAMES) >= {"sign_spectrum", "update_spectrum"}
    for module in command.statements().values():
        assert module.SAYS and "paper" in module.SOURCE and "holds" in module.RULE


@pytest.mark.parametrize(("after", "verdict"), [
    ((0.4, 0.3), "holds"), ((0.4, 0.6), "holds partly"), ((0.6, 0.7), "does not hold")])
def test_the_verdict_on_sign(after, verdict):
    found = {f"momentum at step {n}": {"before": [0.5], "after": [value]}
             for n, value in enumerate(after)}
    found["Gaussian"] = {"before": [1.0], "after": [0.0]}  # decides nothing
    assert sign_spectrum.judge(found) == verdict


@pytest.mark.parametrize(("released", "exact", "verdict"), [
    ((0.96, 1.04), (1.0, 1.0), "holds"), ((0.7, 1.2), (1.0, 1.0), "holds partly"),
    ((0.7, 1.2), (1e-7, 1.0), "does not hold")])
def test_the_verdict_on_the_identity(released, exact, verdict):
    def entry(*ends):
        return {label: {"smallest": [low], "largest": [high]} for label, (low, high) in zip(
            ("ARS2-Neo Base", "ARS2-Neo Base, exact msign"), ends, strict=True)}

    found = {"one": entry((1.0, 1.0), (1.0, 1.0)), "another": entry(released, exact)}
    assert update_spectrum.judge(found) == verdict


def test_the_identity_is_exact_on_a_matrix_of_full_rank():
    from types import SimpleNamespace

    from optimizer.ars2_neo import ARS2Neo

    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(5, 7, dtype=torch.float64))
    optimizer = ARS2Neo([p], lr=update_spectrum.LR, k=0, weight_decay=0.0, orthogonalizer="svd")
    for _ in range(3):
        before = p.detach().clone()
        p.grad = torch.randn_like(p)
        optimizer.step(lambda: torch.tensor(0.0))
    run = SimpleNamespace(optimizer=optimizer)
    assert update_spectrum.extremes(run, p, p.detach() - before) == pytest.approx((1.0, 1.0))


def test_a_short_run_of_both_is_written_and_reads_back(tiny_data, tmp_path, monkeypatch, capsys):
    tables = training.SMALL
    monkeypatch.setattr(sign_spectrum, "TASKS", {"grokking": ((1, 3), {}),
                                                 "wikitext2": ((1,), tables["wikitext2"])})
    monkeypatch.setattr(update_spectrum, "TASKS", {"grokking": {}, "cifar": tables["cifar"]})
    monkeypatch.setattr(update_spectrum, "STEPS", 3)
    monkeypatch.setattr(update_spectrum, "RULES", {
        k: v for k, v in update_spectrum.RULES.items() if "ARS2" in k or k == "AdamW"})
    assert command.main(["sign_spectrum", "update_spectrum", "--seeds", "1", "--output",
                         str(tmp_path)]) == 0
    for name in ("sign_spectrum", "update_spectrum"):
        content = json.loads((tmp_path / f"{name}.json").read_text())
        assert (tmp_path / f"{name}.md").read_text() == command.page(name, content)
        assert f"{name}: " in capsys.readouterr().out or name == "update_spectrum"
    found = json.loads((tmp_path / "sign_spectrum.json").read_text())["found"]
    # At step 1 the momentum is a tenth of the gradient: its sign is that of ARS's first step.
    assert all(0 < entry[key][0] < 1 for entry in found.values() for key in ("before", "after"))
    assert found["rank 4"]["after"][0] > found["rank 4"]["before"][0]
    assert command.main(["nonsense"]) == 2
    assert command.summary(tmp_path).count("| **") == 2


def test_steps_counts_across_epochs():
    run = training.built({"name": "adamw"}, seed=1)
    assert list(training.steps(run, 3)) == [1, 2, 3]
    names = set(training.matrices(run.model))
    assert "blocks.0.W_Q" in names and not names & {"W_E", "W_U", "blocks.0.b_in"}
    assert math.isfinite(float(run.objective.last_loss))


@pytest.mark.parametrize("name", [name for name in NAMES if (KEPT / f"{name}.json").exists()])
def test_committed_pages_are_what_their_json_says(name):
    path = KEPT / f"{name}.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == command.page(name, content)


def test_the_committed_summary_is_what_the_pages_say():
    assert Path("docs/theory.md").read_text(encoding="utf-8") == command.summary(KEPT)


def test_the_fisher_diagonal_of_softmax_regression_by_hand():
    from exp.theory.spectra.fisher_diagonal import agreement, fisher_diagonals

    torch.manual_seed(0)
    model = torch.nn.Linear(2, 3, bias=False, dtype=torch.float64)
    x = torch.randn(4000, 2, dtype=torch.float64)
    labels = torch.zeros(4000, dtype=torch.long)
    found = fisher_diagonals(model, x, labels, torch.Generator().manual_seed(0))
    p = (x @ model.weight.T).softmax(-1).detach()
    exact = ((p * (1 - p)).unsqueeze(2) * x.square().unsqueeze(1)).mean(0).flatten()
    torch.testing.assert_close(found["Fisher"], exact, rtol=0.1, atol=0.0)
    errors = p - torch.nn.functional.one_hot(labels, 3)
    empirical = (errors.square().unsqueeze(2) * x.square().unsqueeze(1)).mean(0).flatten()
    torch.testing.assert_close(found["empirical Fisher"], empirical)
    assert agreement(3 * exact, exact) == pytest.approx(
        {"rank_correlation": 1.0, "cosine": 1.0, "error": 0.0}, abs=1e-6)
    assert agreement(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))["error"] == 1.0


@pytest.mark.parametrize(("ranks", "error", "verdict"), [
    ((0.95, 0.9), 0.4, "holds"), ((0.95, 0.9), 0.6, "holds partly"),
    ((0.95, 0.4), 0.1, "does not hold")])
def test_the_verdict_on_the_fisher_diagonal(ranks, error, verdict):
    from exp.theory.spectra.fisher_diagonal import judge

    assert judge({f"step {n}": {"Fisher": {"rank_correlation": [rank], "error": [error]}}
                  for n, rank in enumerate(ranks)}) == verdict


def test_the_fisher_diagonal_takes_batch_norms_as_training_has_them():
    from exp.theory.spectra.fisher_diagonal import fisher_diagonals

    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(2, affine=False, momentum=0.1, dtype=torch.float64)
    head = torch.nn.Linear(2, 3, bias=False, dtype=torch.float64)
    x = 5 + 3 * torch.randn(40, 2, 1, 1, dtype=torch.float64)
    labels = torch.arange(40) % 3
    model = torch.nn.Sequential(norm, torch.nn.Flatten(), head)
    found = fisher_diagonals(model, x, labels, torch.Generator().manual_seed(0))
    flat = x.flatten(1)
    inputs = (flat - flat.mean(0)) / (flat.var(0) + norm.eps).sqrt()
    errors = (inputs @ head.weight.T).softmax(-1).detach() - torch.nn.functional.one_hot(labels, 3)
    expected = (errors.square().unsqueeze(2) * inputs.square().unsqueeze(1)).mean(0).flatten()
    torch.testing.assert_close(found["empirical Fisher"], expected)
    assert float(norm.running_mean.abs().max()) == 0  # the model itself is left alone
