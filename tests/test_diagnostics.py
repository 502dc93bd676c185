"""Instruments: measures by hand, against the exact Hessian; runs the same with and without."""

import json
import math
import sys
import tomllib

import pytest
import torch
from conftest import TINY, aga_config
from torch import nn
from torch.nn import functional as F

from exp.harness import cli
from exp.harness.curvature import curvature, sam_sharpness
from exp.harness.diagnostics import adam_direction, cosine, spectrum
from exp.harness.task import task_named, train_function
from model import available_models, build_model, model_class

DOUBLE = torch.float64


def launch(task, folder, *overrides):
    config = aga_config(task, folder)
    options = [word for item in (*TINY[task], "experiment.epochs=2", *overrides)
               for word in ("--set", item)]
    return cli.launch(task_named(task), train_function(task), [
        "--config", str(config), "--output", str(folder), *options])


def test_the_spectrum_of_known_matrices_by_hand():
    found = spectrum(torch.diag(torch.tensor([3.0, 1.0], dtype=DOUBLE)))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found == pytest.approx({
        "entropy": entropy / math.log(2), "effective_rank": math.exp(entropy), "condition": 3.0,
        "orthogonality_error": 0.5})
    flat = spectrum(5 * torch.linalg.qr(torch.randn(6, 4, dtype=DOUBLE))[0])
    assert flat == pytest.approx({"entropy": 1.0, "effective_rank": 4.0, "condition": 1.0,
                                  "orthogonality_error": 0.0}, abs=1e-7)
    stack = spectrum(torch.stack([torch.eye(3), torch.diag(torch.tensor([1.0, 1.0, 4.0]))]))
    assert stack["condition"] == pytest.approx(2.5)  # the mean of 1 and 4
    conv = spectrum(torch.randn(4, 3, 2, 2))
    assert 1 < conv["effective_rank"] <= 4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_measures_nan_and_bf16_is_measured(bad):
    matrix = torch.ones(3, 3)
    matrix[0, 0] = bad
    assert all(math.isnan(value) for value in spectrum(matrix).values())
    assert spectrum(torch.eye(3, dtype=torch.bfloat16))["condition"] == 1.0
    assert spectrum(torch.ones(1, 5))["entropy"] == 1.0
    assert spectrum(torch.ones(3, 3))["condition"] > 1e6  # of rank one
    assert math.isnan(spectrum(torch.zeros(3, 3))["entropy"])


def test_adams_direction_is_the_step_of_adam():
    w = nn.Parameter(torch.randn(3, 4, dtype=DOUBLE))
    optimizer = torch.optim.Adam([w], lr=1.0, eps=0.0)
    for _ in range(4):
        w.grad = torch.randn(3, 4, dtype=DOUBLE)
        before = w.detach().clone()
        optimizer.step()
    assert cosine(w.detach() - before, -adam_direction(optimizer, w)) == pytest.approx(1.0)
    sgd = torch.optim.SGD([w], lr=1.0)
    assert adam_direction(sgd, w) is None
    assert cosine(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])) == pytest.approx(0.5**0.5)


def test_curvature_against_the_exact_hessian():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(DOUBLE)
    x, y = torch.randn(7, 3, dtype=DOUBLE), torch.randint(0, 3, (7,))
    params = list(model.parameters())
    shapes = [p.shape for p in params]

    def loss(vector):
        parts = torch.split(vector, [s.numel() for s in shapes])
        named = {name: part.view(shape) for (name, _), part, shape in zip(
            model.named_parameters(), parts, shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, named, x), y)

    point = torch.cat([p.detach().flatten() for p in params])
    exact = torch.autograd.functional.hessian(loss, point)
    state = torch.get_rng_state()
    found = curvature(model, (x, y), params)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.cat([p.detach().flatten() for p in params]), point)
    assert found["top_eigenvalue"] == pytest.approx(float(torch.linalg.eigvalsh(exact)[-1]),
                                                    rel=1e-2)
    # Hutchinson's deviation: 2 (||H||_F^2 - sum H_ii^2) / products, under Rademacher vectors.
    spread = (2 * (exact.square().sum() - exact.diag().square().sum()) / 20) ** 0.5
    assert abs(found["trace"] - float(exact.trace())) < 4 * float(spread)
    gradient = torch.autograd.functional.jacobian(loss, point)
    risen = loss(point + 0.05 * gradient / gradient.norm()) - loss(point)
    assert found["sam_sharpness"] == pytest.approx(float(risen), rel=1e-9)
    assert sam_sharpness(model, (x, y), params, rho=0.0) == 0.0


@pytest.mark.parametrize("name", available_models())
def test_curvature_of_every_model(name):
    tiny = sys.modules[model_class(name).__module__].TINY
    torch.manual_seed(0)
    model = build_model({"name": name, **tiny}).train()
    inputs = torch.randint(0, tiny["vocab_size"], (5, 3)) if "vocab_size" in tiny \
        else torch.randn(4, 3, 32, 32)
    classes = model(inputs).shape
    batch = inputs, torch.randint(0, classes[-1], classes[:-1])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = curvature(model, batch, list(model.parameters()))
    assert all(math.isfinite(value) for value in found.values())
    assert found["top_eigenvalue"] > 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_curvature_of_what_diverges_is_nan(weight):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    params = list(model.parameters())
    with torch.no_grad():
        model[2].weight.fill_(weight)
    found = curvature(model, (torch.randn(7, 3), torch.randint(0, 3, (7,))), params)
    assert all(map(math.isnan, found.values()))


@pytest.mark.parametrize(("task", "extra"), [
    *((task, ()) for task in TINY), ("grokking", ("optimizer.qk_clip={tau = 1e-4}",))])
def test_a_run_is_the_same_with_instruments_and_records_them(task, extra, tiny_data, tmp_path):
    names = 'experiment.diagnostics=["spectrum", "updates", "alignment", "sharpness"]'
    assert launch(task, tmp_path / "with", names, "experiment.diagnostics_every=2", *extra) == 0
    assert launch(task, tmp_path / "without", *extra) == 0
    records = [[json.loads(line) for line in
                (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
               for name in ("with", "without")]
    timed = ("seconds", "peak_memory_bytes", "diagnostics")
    for a, b in zip(*records, strict=True):
        assert {k: v for k, v in a.items() if k not in timed} == {
            k: v for k, v in b.items() if k not in timed}
        found = a["diagnostics"]
        assert {k: v for k, v in found.items() if "/" not in k} == b["diagnostics"]
        kinds = {key.split("/")[0] for key in found if "/" in key}
        assert kinds == {"spectrum", "updates", "alignment", "sharpness"}
        ratios = [value for key, value in found.items() if key.startswith("updates/")
                  and key.endswith("ratio") and value is not None]  # of what was zero there is none
        assert ratios and all(0 < ratio < 10 for ratio in ratios)
    assert (tmp_path / "with" / "diagnostics.png").stat().st_size > 10_000
    assert not (tmp_path / "without" / "diagnostics.png").exists()
    assert tomllib.loads((tmp_path / "without" / "config.toml").read_text())[
        "experiment"]["diagnostics"] is True


def test_unknown_instruments_and_intervals_are_refused(tiny_data, tmp_path, capsys):
    assert launch("grokking", tmp_path / "a", 'experiment.diagnostics=["colour"]') == 2
    assert "diagnostics" in capsys.readouterr().err
    assert launch("grokking", tmp_path / "a", "experiment.diagnostics_every=0") == 2
