"""exp.landscape: functions have their minima, walks are what the optimizer does, pages match."""

import json
import math
from pathlib import Path

import pytest
import torch

from exp.landscape.__main__ import main, page_of, parse
from exp.landscape.functions import DOUBLE, FUNCTIONS
from exp.landscape.paths import Walk, best_walk, walk, walkers

KEPT = sorted(Path("outputs/paper/landscape").glob("*.json"))


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=list(FUNCTIONS))
def test_every_minimum_is_one_and_lies_in_the_picture(function):
    left, right, bottom, top = function.box
    for x, y in function.minima:
        point = function.point(torch.tensor(x, dtype=DOUBLE), torch.tensor(y, dtype=DOUBLE))
        point = point.reshape(function.start.shape).clone().requires_grad_()
        value = function.value(point)
        (gradient,) = torch.autograd.grad(value, point)
        assert value.item() == pytest.approx(0, abs=1e-9)
        assert gradient.norm() < 1e-3
        hessian = torch.autograd.functional.hessian(function.value, point.detach())
        size = point.numel()
        assert torch.linalg.eigvalsh(hessian.reshape(size, size))[0] > 0
        assert function.coordinates(point.detach()).tolist() == pytest.approx([x, y])
        assert left < x < right and bottom < y < top
    x, y = function.coordinates(function.start).tolist()
    assert left < x < right and bottom < y < top


def test_the_values_of_the_plane_functions_by_hand():
    at = {"rosenbrock": 24.2, "beale": 14.203125, "himmelblau": 170.0, "quadratic": 0.5 * 0.25 * (
        (3**0.5) ** 2 + 100)}
    point = {"rosenbrock": (-1.2, 1.0), "beale": (0.0, 1.0), "himmelblau": (0.0, 0.0),
             "quadratic": (1.0, 0.0)}
    for name, expected in at.items():
        w = torch.tensor([point[name]], dtype=DOUBLE)
        assert FUNCTIONS[name].value(w).item() == pytest.approx(expected), name


def test_the_matrix_quadratic_is_as_ill_conditioned_as_it_says():
    function = FUNCTIONS["matrix"]
    hessian = torch.autograd.functional.hessian(function.value, function.start).reshape(64, 64)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    assert float(eigenvalues[-1] / eigenvalues[0]) == pytest.approx(1e6, rel=1e-6)


def test_a_walk_of_sgd_by_hand_and_when_it_arrives():
    still = walk(FUNCTIONS["quadratic"], "sgd", 0.0, 3)
    assert still.points == [still.points[0]] * 4 and still.evaluations == 3
    assert still.arrival is None
    assert Walk("x", 1.0, [], [100.0, 1e-3, 5.0, 1e-3, 1e-4], 4).arrival == 3
    assert walk(FUNCTIONS["rosenbrock"], "sgd", 3.0, 50).final == math.inf


@pytest.mark.parametrize("name", walkers())
def test_every_walker_gets_down_the_matrix_quadratic(name):
    function = FUNCTIONS["matrix"]
    before = function.value(function.start).item()
    assert min(walk(function, name, lr, 20).final for lr in (0.01, 0.1)) < before


def test_the_best_rate_is_the_best_of_the_grid():
    best = best_walk(FUNCTIONS["quadratic"], "adamw", 40)
    for lr in (0.01, 0.1, 1.0):
        assert best.final <= walk(FUNCTIONS["quadratic"], "adamw", lr, 40).final


def test_the_command_writes_a_picture_an_animation_and_numbers(tmp_path, capsys):
    options = ["--function", "beale", "--optimizers", "sgd,muon", "--steps", "8", "--output",
               str(tmp_path)]
    assert main(options) == 0
    numbers = json.loads((tmp_path / "beale.json").read_text())
    assert [entry["optimizer"] for entry in numbers["best"]] == ["sgd", "muon"]
    assert (tmp_path / "beale.md").read_text() == page_of(numbers)
    assert numbers["recipes"] == {"optimizer.muon": 1, "optimizer.parts": 1}
    older = page_of(numbers | {"recipes": {"optimizer.lars": 1}})
    assert older.endswith("differ (RECIPE numbers): optimizer.lars 1 -> 2.\n")
    files = {name: (tmp_path / name).read_bytes()
             for name in ("beale.png", "beale.gif", "beale.md")}
    assert len(files["beale.png"]) > 20_000 and files["beale.gif"][:4] == b"GIF8"
    for name in files:
        (tmp_path / name).unlink()
    assert main(["--render", "--function", "beale", "--output", str(tmp_path)]) == 0
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
    assert main(["--render", "--function", "matrix", "--output", str(tmp_path)]) == 2
    assert "without --render" in capsys.readouterr().err
    assert parse([]).output == Path("outputs/landscape")
    assert main(["--optimizers", "kfac"]) == 2
    assert main(["--function", "kfac"]) == 2
    assert "'kfac' cannot run on these functions" in capsys.readouterr().err


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_committed_pages_are_what_their_json_says(path):
    numbers = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == page_of(numbers)
    assert path.with_suffix(".png").exists() and path.with_suffix(".gif").exists()
