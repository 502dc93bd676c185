"""The ablation: which cells there are and are the same, effects by hand, a small one in full."""

import json
import math
from pathlib import Path

import pytest

from exp.harness.task import task_named
from exp.tune import __main__ as command
from exp.tune import arms, chain
from exp.tune.arms import arm_named
from exp.tune.cells import ADAMW_CELL, Ablation, read_ablation
from exp.tune.check import check_board
from exp.tune.published import ablation as page
from exp.tune.space import AXES
from exp.tune.terms import settings_of, terms_of

REAL = read_ablation()


def test_of_48_combinations_36_are_distinct_and_the_others_borrow_from_one_of_them():
    every, arms = REAL.cells(), REAL.arms()
    assert (len(every), len(arms)) == (48, 36)
    assert all(REAL.run_as(cell) in arms.values() for cell in every)
    adamw = {"whitening": "yes", "orthogonalization": "no", "energy": "none", "sharpness": "none"}
    assert REAL.known_as(adamw) == "AdamW"
    for energy in ("frobenius", "literal"):
        assert REAL.run_as({**adamw, "energy": energy}) == adamw
    plain = {**adamw, "whitening": "no"}
    assert REAL.run_as({**plain, "energy": "literal"}) == {**plain, "energy": "frobenius"}


@pytest.mark.parametrize("name", REAL.arms())
def test_every_cell_can_be_run_and_searches_as_many_axes_as_its_neighbours(name, grokking):
    arm = arm_named(name, grokking["cap"])
    settings_of(grokking, arm, arm.settings(arm.defaults, grokking["cap"]), 1, 100)
    assert set(arm.axes) == {*AXES} | (set() if name.endswith("-none") else {"rho"})


@pytest.fixture(scope="module")
def grokking():
    task = task_named("grokking")
    asked = dict.fromkeys(("target", "cap", "studies", "trials", "fresh_seeds"))
    return terms_of(task, asked, task.scale("tiny"))


def test_a_cell_is_searched_around_its_own_rate():
    rates = {name: arm_named(name, 100).defaults["lr"] for name in (
        "ablation-yes-yes-literal-sync", "ablation-yes-yes-frobenius-sync",
        "ablation-no-no-none-sync", "ablation-yes-no-none-none")}
    assert list(rates.values()) == [3e-4, 1e-3, 0.1, 1e-3]
    assert list(rates)[-1] == ADAMW_CELL and REAL.known_as(REAL.arms()[ADAMW_CELL]) == "AdamW"


# --- effects by hand

SMALL = Ablation(
    {"name": "ars2_neo", "rho": 0.05, "adaptive_sync": False},
    {"orthogonalization": {"no": {"orthogonalizer": "none"}, "yes": {"orthogonalizer": "keller"}},
     "energy": {"none": {"energy_norm": "none"}, "frobenius": {"energy_norm": "frobenius"}},
     "sharpness": {"none": {"k": 0}, "sync": {"k": 1}}},
    ({"cell": {"orthogonalization": "no", "energy": "frobenius"}, "same_as": {"energy": "none"},
      "is": "AdamW"},))
COSTS = {"no-none-none": 400, "yes-none-none": 200, "yes-frobenius-none": 100,
         "no-none-sync": None, "yes-none-sync": 200, "yes-frobenius-sync": None}


def content_of(costs, cap=800):
    def fresh(value):
        run = {"study": 1, "reached": True, "curve": {"gradient_evaluations": [1, value]}}
        return [] if value is None else [run]

    return {"terms": {"task": "grokking", "metric": "eval_accuracy", "mode": "max", "target": 0.99,
                      "cap": cap, "budget": 1, "studies": 1, "fresh_seeds": 1,
                      "set": []},
            "factors": {factor: list(levels) for factor, levels in SMALL.factors.items()},
            "cells": [{"levels": cell, "is": SMALL.known_as(cell), "ran": SMALL.run_as(cell)}
                      for cell in SMALL.cells()],
            "arms": {f"ablation-{name}": {"fresh": fresh(value), "studies": []}
                     for name, value in costs.items()}}


def test_effects_are_paired_ratios_with_misses_at_the_cap():
    ortho, energy, sharp = page.effects(content_of(COSTS))
    # 200/400, 100/400 (AdamW's runs stand for its cell), 200/800 (a bound); both missed: left out.
    assert (ortho["part"], ortho["pairs"], ortho["bounds"], ortho["missed"]) == (
        "orthogonalization: yes", 3, 1, 1)
    assert ortho["ratio"].value == pytest.approx((1 / 2 * 1 / 4 * 1 / 4) ** (1 / 3))
    assert sorted((round(ratio, 9), bound) for ratio, bound in ortho["ratios"]) == [
        (0.25, False), (0.25, True), (0.5, False)]
    assert (ortho["cheaper"], ortho["p"]) == (3, 0.25)  # 2 of 8 sign changes
    # Only where there is an orthogonal direction: 100/200 and 800/200.
    assert (energy["pairs"], energy["bounds"], energy["cheaper"]) == (2, 1, 1)
    assert energy["ratio"].value == pytest.approx(math.sqrt(2))
    # 800/400 once, though two cells show these runs; 200/200; 800/100.
    assert (sharp["pairs"], sharp["cheaper"]) == (3, 0)
    assert sharp["ratio"].value == pytest.approx((2 * 1 * 8) ** (1 / 3))


# --- the whole command


def test_the_ablation_is_a_board_of_its_own_against_the_cell_that_is_adamw(tmp_path, monkeypatch):
    two = Ablation(SMALL.settings, {"orthogonalization": SMALL.factors["orthogonalization"],
                                    "energy": {"frobenius": {"energy_norm": "frobenius"}},
                                    "sharpness": {"none": {"k": 0}}}, ())
    for module in (command, arms):
        monkeypatch.setattr(module, "read_ablation", lambda: two)
    monkeypatch.setattr(command, "ADAMW_CELL", "ablation-no-frobenius-none")
    monkeypatch.setattr(command, "run_jobs", lambda jobs, _, report: [
        report(job, chain.main([job.work().command[-1]])) for job in jobs])
    outputs = tmp_path / "outputs"
    words = [word for item in task_named("grokking").scale("tiny") for word in ("--set", item)]
    assert command.main(["grokking", "--ablation", "--trials", "1", "--studies", "2",
                         "--fresh-seeds", "1", "--target", "0.02", "--cap", "40", "--outputs",
                         str(outputs), *words]) == 0
    (path,) = (outputs / "paper" / "arena").glob("*.json")
    board = json.loads(path.read_text())
    assert path.stem == "grokking_ablation" and set(board["arms"]) == set(two.arms())
    assert "ratio" in board["results"]["arms"]["ablation-yes-frobenius-none"]
    assert check_board(board) == []


@pytest.mark.parametrize("path", sorted(Path("outputs/paper").glob("ablation_*.json")),
                         ids=lambda path: path.stem)
def test_the_committed_page_is_what_its_json_says(path):
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == page.render(kept)
    assert path.with_suffix(".png").exists()
    assert set(kept["arms"]) == set(REAL.arms())
