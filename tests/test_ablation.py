"""The ablation: which cells there are and are the same, effects by hand, a small one in full."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from exp.harness.task import task_named
from exp.report.judgement import holm
from exp.tune import __main__ as command
from exp.tune import arms, chain
from exp.tune.arms import arm_named
from exp.tune.cells import ADAMW_CELL, Ablation, read_ablation
from exp.tune.check import check_board
from exp.tune.effects import effects, section
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
# Per arm two studies; nn is run for nf too, so that energy has one pair: yn, yf.
VALUES = {"no-none-none": (6.0, 6.2), "yes-none-none": (5.0, 5.4), "yes-frobenius-none": (5.5, 5.5),
          "no-none-sync": (7.0, 7.0), "yes-none-sync": (6.5, 6.5), "yes-frobenius-sync": (5.9, 6.1)}


def test_effects_are_means_over_pairs_of_cells_with_the_study_as_the_sample():
    rows = {f"ablation-{name}": {"values": list(values), "censored": [name == "no-none-sync"] * 2}
            for name, values in VALUES.items()}
    board = {"terms": {"alpha": 0.05}, "results": {"arms": rows}}
    ortho, energy, sync = effects(board, SMALL)
    # With the special cells: nn -> yn, (nf is nn) -> yf, both with and without the sharp pass.
    d = np.mean([(-1.0, -0.8), (-0.5, -0.7), (-0.5, -0.5), (-1.1, -0.9)], 0)
    assert (ortho.part, ortho.pairs) == ("orthogonalization: yes", 4)
    assert ortho.ratio.value == pytest.approx(math.exp(d.mean()))
    half = 12.706204736 * d.std(ddof=1) / 2**0.5
    assert ortho.ratio.low == pytest.approx(math.exp(d.mean() - half))
    assert ortho.p == pytest.approx(2 * stats.t.sf(abs(d.mean()) / (half / 12.706204736), 1))
    assert ortho.bound == "at most" and energy.bound == ""
    assert (energy.pairs, sync.pairs, sync.bound) == (2, 3, "at least")
    assert energy.ratio.value == pytest.approx(math.exp(np.mean([0.5, 0.1, -0.6, -0.4])))
    assert [e.p_holm for e in (ortho, energy, sync)] == holm([e.p for e in (ortho, energy, sync)])
    assert [effect.verdict(1.0) for effect in (ortho, energy, sync)] == [
        "pays", "pays", "costs"]
    assert {effect.verdict(0.0) for effect in (ortho, energy, sync)} == {"undecided"}
    against = replace(sync, bound="at most", p_holm=0.0)
    assert against.verdict(0.05) == "undecided"
    assert effects({"terms": {}, "results": {"arms": {}}}, SMALL) == []
    assert section(board, REAL, str) == ()  # its pairs are not on this board
    named = ({"cell": {"orthogonalization": "no", "energy": "none"}, "is": "AdamW"},)
    *_, rules = section(board, replace(SMALL, special=SMALL.special + named), str)
    assert rules == "Known rules: ablation-no-none-none is AdamW."


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
