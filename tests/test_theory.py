"""exp.theory: verdicts by their rules, measures on small runs, pages from their JSON."""

import math
from pathlib import Path

import pytest
import torch

from exp.harness.recipes import recipe
from exp.papers.ars2_neo.statements import fisher_diagonal, sign_spectrum, update_spectrum
from exp.report.rows import Rows, read_rows, rows_of
from exp.theory import __main__ as command
from exp.theory import statement, training

KEPT = command.PUBLISHED
NAMES = list(statement.statement_files())


def rows(tree, *columns, **shared):
    """Nested objects as the rows of a statement; seeds count from 1."""
    leaf = tree
    while isinstance(leaf, dict):
        leaf = next(iter(leaf.values()))
    named = {} if "axis" in columns else {"axis": "loss"}
    return rows_of(tree, columns, range(1, len(leaf) + 1), **named | shared)


def spread(value, by=0.01):
    """Values of three seeds around one."""
    return [value - by, value, value + by]


def test_every_statement_says_what_it_tests_and_by_which_rule():
    assert set(NAMES) >= {"sign_spectrum", "update_spectrum"}
    for name in NAMES:
        title, source, rule, *prose = statement.text(name)
        assert title.startswith("# ") and source.startswith("Source: ") and "paper" in source
        if hasattr(statement.statement(name), "judge"):
            assert rule.startswith("Rule: ") and "Holds if" in rule and prose


@pytest.mark.parametrize(("after", "verdict"), [
    ((0.4, 0.3), "holds"), ((0.4, 0.6), "does not hold"), ((0.4, 0.495), "inconclusive")])
def test_the_verdict_on_sign(after, verdict):
    entropies = {f"momentum at step {n}": {"before": [0.5] * 3, "after": spread(value)}
                 for n, value in enumerate(after)}
    entropies["Gaussian"] = {"before": [1.0] * 3, "after": spread(0.0)}  # decides nothing
    assert sign_spectrum.judge(rows(entropies, "matrix", "axis")).word == verdict


@pytest.mark.parametrize(("released", "exact", "verdict"), [
    ((0.96, 1.04), (1e-7, 1.0), "holds"), ((0.7, 1.0), (1.0, 1.0), "does not hold"),
    ((1.0, 1.2), (1.0, 1.0), "does not hold")])  # an identity is never inconclusive
def test_the_verdict_on_the_identity(released, exact, verdict):
    def entry(*ends):
        return {label: {"smallest": [1.0, low], "largest": [high, 1.0]}
                for label, (low, high) in zip(
            ("ARS2-Neo Base", "ARS2-Neo Base, exact msign"), ends, strict=True)}

    tree = {"one": entry((1.0, 1.0), (1.0, 1.0)), "another": entry(released, exact)}
    found = update_spectrum.judge(rows(tree, "task", "optimizer", "axis"))
    assert found.word == verdict and f": {released[0]:g} to {released[1]:g} (ARS" in found.numbers


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
    monkeypatch.setattr(sign_spectrum, "TASKS", {"grokking": ((1, 3), "full"),
                                                 "wikitext2": ((1,), "small")})
    monkeypatch.setattr(update_spectrum, "TASKS", {"grokking": "full", "cifar": "small"})
    monkeypatch.setattr(update_spectrum, "STEPS", 3)
    monkeypatch.setattr(update_spectrum, "GRID", {"task": ("grokking", "cifar"), "optimizer": [
        name for name in update_spectrum.RULES if "ARS2" in name or name == "AdamW"]})
    monkeypatch.setattr(update_spectrum, "tables", lambda rows: dict.fromkeys(
        ("grokking", "cifar", "wikitext2"), statement.means_table(rows)))
    names = ["sign_spectrum", "update_spectrum"]
    assert command.main([*names, "--seeds", "1", "--output", str(tmp_path)]) == 0
    for name in names:
        assert (tmp_path / f"{name}.md").read_text() == statement.page_of(
            name, *read_rows(tmp_path / f"{name}.json"))
    assert capsys.readouterr().out.count("written to") == 2
    measured, provenance = read_rows(tmp_path / "sign_spectrum.json")
    assert provenance["seeds"] == [1] and provenance["commit"]
    assert provenance["data"].keys() == {"grokking", "wikitext2"}
    assert provenance["recipes"]["exp.wikitext2.train"] == recipe("exp.wikitext2.train")
    older = provenance | {"recipes": {"optimizer.lars": 1}}
    assert statement.page_of("sign_spectrum", measured, older).endswith(
        "differ (RECIPE numbers): optimizer.lars 1 -> 2.\n")
    digest = provenance["data"]["grokking"]
    assert f"; data of grokking {digest}; " in (tmp_path / "sign_spectrum.md").read_text()
    # At step 1 the momentum is a tenth of the gradient: its sign is that of ARS's first step.
    assert all(0 < row.value < 1 for row in measured)
    low = measured.where(matrix="rank 4").tree("axis")
    assert low["after"][0] > low["before"][0]
    assert statement.summary(tmp_path).count("| **") == 2
    pages = {path: path.read_bytes() for path in tmp_path.glob("*.md")}
    for path in pages:
        path.unlink()
    assert command.main(["--render", "--output", str(tmp_path)]) == 0
    assert {path: path.read_bytes() for path in pages} == pages


def test_wrong_arguments_and_damaged_files_are_one_line(tmp_path, capsys):
    assert command.main(["nonsense"]) == 2
    assert f"unknown statement 'nonsense'; available: {NAMES[0]}, " in capsys.readouterr().err
    assert command.main(["warm_up", "--render", "--output", str(tmp_path)]) == 2
    assert command.main(["--render", "--output", str(tmp_path)]) == 2
    assert "has no measured statement" in capsys.readouterr().err
    (tmp_path / "warm_up.json").write_text("{")
    assert command.main(["warm_up", "--render", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert command.main(["warm_up", "--list"]) == 0
    assert "Transformers nearly always need warm-up" in capsys.readouterr().out


def test_results_go_elsewhere_than_the_published_ones_unless_told():
    assert command.parse([]).output == Path("outputs/theory") != KEPT


def test_a_page_and_the_summary_say_what_is_missing(tmp_path):
    entropies = {"momentum at step 1": {"before": [0.5] * 3, "after": [0.4, 0.6, 0.45]}}
    measured = rows(entropies, "matrix", "axis")
    found = sign_spectrum.judge(measured)
    assert found.in_words(measured) == "**inconclusive**, 243 seeds needed"
    assert found.numbers.endswith("; 0 of 1 tests hold, 0 fail, 1 undecided")
    alone = Rows(row for row in measured if row.seed == 1)
    assert sign_spectrum.judge(alone).in_words(alone) == (
        "**inconclusive**: one seed has no interval")


def test_steps_counts_across_epochs():
    run = training.built({"name": "adamw"}, seed=1)
    assert list(training.steps(run, 3)) == [1, 2, 3]
    names = set(training.matrices(run.model))
    assert "blocks.0.W_Q" in names and not names & {"W_E", "W_U", "blocks.0.b_in"}
    assert math.isfinite(float(run.objective.last_loss))


@pytest.mark.parametrize("name", [name for name in NAMES if (KEPT / f"{name}.json").exists()])
def test_committed_pages_are_what_their_json_says(name):
    path = KEPT / f"{name}.json"
    assert path.with_suffix(".md").read_text(encoding="utf-8") == statement.page_of(
        name, *read_rows(path))


def test_the_committed_summary_is_what_the_pages_say():
    assert Path("docs/theory.md").read_text(encoding="utf-8") == statement.summary(KEPT)


def test_the_fisher_diagonal_of_softmax_regression_by_hand():
    from exp.papers.ars2_neo.statements.fisher_diagonal import agreement, fisher_diagonals

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
    ((0.95, 0.94), 0.4, "holds"), ((0.95, 0.94), 0.6, "does not hold"),
    ((0.95, 0.8), 0.4, "does not hold"), ((0.95, 0.9), 0.4, "inconclusive")])
def test_the_verdict_on_the_fisher_diagonal(ranks, error, verdict):
    tree = {n: {"Fisher": {"rank_correlation": spread(rank), "error": spread(error)}}
            for n, rank in enumerate(ranks)}
    assert fisher_diagonal.judge(rows(tree, "step", "against", "axis",
                                      task="x")).word == verdict


def test_the_fisher_diagonal_takes_batch_norms_as_training_has_them():
    from exp.papers.ars2_neo.statements.fisher_diagonal import fisher_diagonals

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
