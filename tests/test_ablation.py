"""The ablation: which cells there are and are the same, effects by hand, a small one in full."""

import json
import math
from pathlib import Path

import pytest
from conftest import TINY

from exp.harness import cli
from exp.harness.config import complete
from exp.harness.task import task_named, train_function
from exp.tune import __main__ as command
from exp.tune import ablation as page
from exp.tune import cells, space, study
from exp.tune.cells import Ablation, read_ablation
from exp.tune.space import Range, arm_settings, goal_of, points, search_space

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


@pytest.mark.parametrize("arm", REAL.arms())
def test_every_cell_can_be_run_and_searches_as_many_keys_as_its_neighbours(arm):
    goal = goal_of("grokking")
    point, = points(search_space(arm), 1, seed=1)
    settings = study.trial_settings(goal, arm, point, seed=7, limit=100)
    assert settings == complete(settings, task_named("grokking"))
    own = {"adamw.lr", "adamw.weight_decay"} if "-no-no-none-" in arm else set()
    rho = set() if arm.endswith("-none") else {"rho"}
    assert set(search_space(arm)) == {"lr", "weight_decay", "betas"} | own | rho
    assert "space" not in arm_settings(arm)


def test_a_cell_searches_its_own_range():
    assert search_space("ablation-yes-yes-literal-sync")["lr"] == Range(1e-5, 1e-2, True)
    assert search_space("ablation-yes-yes-frobenius-sync")["lr"] == Range(1e-4, 3e-2, True)
    assert search_space("ablation-no-no-none-sync")["lr"] == Range(1e-2, 3.0, True)
    assert search_space("ars2_neo_sync")["lr"] == Range(1e-4, 3e-2, True)


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


def test_a_small_ablation_from_end_to_end(tmp_path, monkeypatch):
    """Two parts, tiny, in this process: trials, fresh seeds, the page."""
    two = Ablation(SMALL.settings, {"orthogonalization": SMALL.factors["orthogonalization"],
                                    "energy": {"frobenius": {"energy_norm": "frobenius"}},
                                    "sharpness": {"none": {"k": 0}}}, ())
    for module in (command, cells, space):
        monkeypatch.setattr(module, "read_ablation", lambda: two)

    def run_here(jobs, launcher):
        task = task_named("grokking")
        return {job: cli.launch(task, train_function("grokking"), job.command("--overwrite")[3:])
                for job in jobs}

    monkeypatch.setattr(command, "run_jobs", run_here)
    options = ["grokking", "--ablation", "--budget", "1", "--studies", "1", "--fresh-seeds", "2",
               "--target", "0.02", "--cap", "40", "--outputs", str(tmp_path / "outputs")]
    options += [word for item in TINY["grokking"] for word in ("--set", item)]
    assert command.main([*options, "--worker"]) == 0
    assert command.main(options) == 0
    paper = tmp_path / "outputs" / "paper"
    content = json.loads((paper / "ablation_grokking.json").read_text())
    assert set(content["arms"]) == {"ablation-no-frobenius-none", "ablation-yes-frobenius-none"}
    for arm in content["arms"].values():
        assert len(arm["studies"][0]["trials"]) == 1
        assert arm["studies"][0]["defaults"] is None  # an arm of the search, not of a user
        assert [run["seed"] for run in arm["fresh"]] in ([101, 102], [])
    assert any(arm["fresh"] for arm in content["arms"].values())
    assert (paper / "ablation_grokking.png").stat().st_size > 5_000
    text = (paper / "ablation_grokking.md").read_text()
    assert text == page.render(content)
    assert "| orthogonalization: yes |" in text and "studies x trials 1 x 1" in text
    assert not (paper / "leaderboard.json").exists()
    assert not list((tmp_path / "outputs" / "tune").rglob("tuned_*.toml"))


@pytest.mark.parametrize("path", sorted(Path("outputs/paper").glob("ablation_*.json")),
                         ids=lambda path: path.stem)
def test_the_committed_page_is_what_its_json_says(path):
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == page.render(kept)
    assert path.with_suffix(".png").exists()
    assert set(kept["arms"]) == set(REAL.arms())
