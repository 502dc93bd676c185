"""exp.reproduce: statistics by hand, verdicts by the rule, runs planned, kept and shown."""

import json
import math
import re
import shutil
import tarfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TINY

from exp.harness.errors import ConfigError
from exp.harness.lock import exclusive
from exp.harness.task import task_named
from exp.jobs import queue
from exp.jobs.deadline import stopped_after
from exp.jobs.here import Here
from exp.jobs.launch import Local
from exp.jobs.queue import Job, run_jobs, state
from exp.report.evidence import sample
from exp.report.jsonfile import write_json
from exp.report.statistics import logrank, mean, median_time, paired, speedup
from exp.reproduce import __main__ as command
from exp.reproduce.claims import Claim, judge
from exp.reproduce.factorial import effects
from exp.reproduce.figures import draw
from exp.reproduce.measures import MEASURES, evidence, overhead
from exp.reproduce.papers import read_papers, select_tables
from exp.reproduce.plan import Cell
from exp.reproduce.records import collect, is_done, keep_finished, read_kept
from exp.reproduce.report import render
from exp.reproduce.verdicts import claims_table, render_verdicts
from exp.reproduce.yardstick import Yardstick

PAPER = Path("outputs/paper")
PAPERS = read_papers()
TABLES = {table.name: table for table in select_tables(PAPERS)}
CLAIMS = [claim for paper in PAPERS for claim in paper.claims]


# --- statistics


def test_the_interval_of_a_mean_is_students_by_hand():
    # Squares about the mean: 4 + 1 + 0 + 9, so that sem = sqrt(14/12) = 1.0801; t(3) = 3.1824.
    found = mean([1.0, 2.0, 3.0, 6.0])
    assert (found.value, found.n) == (3.0, 4)
    assert (found.low, found.high) == pytest.approx((3 - 3.4375, 3 + 3.4375), abs=1e-4)
    assert math.isnan(mean([2.0]).low)
    assert (mean([2.0] * 3).low, mean([2.0] * 3).high) == (2.0, 2.0)


def test_kaplan_meier_median_with_censored_seeds_by_hand():
    # 5 seeds, two censored at 40: after 10, 20, 30 the shares left are 4/5, 3/5, 2/5.
    found = median_time([10, None, 20, 30, None], [40] * 5)
    assert found.value == 30.0
    assert found.low == 10.0 and math.isinf(found.high)
    # One seed watched for 15 epochs only: 4/5 left, then 2/3 and 1/3 of that: 0.8, 0.533, 0.267.
    assert median_time([10, None, 20, 30, 40], [40, 15, 40, 40, 40]).value == 30.0


def test_a_median_that_nobody_reached_is_infinite_as_a_whole():
    found = median_time([None, None], [600, 600])
    assert (found.value, found.low, found.high) == (math.inf,) * 3


def test_a_median_has_two_ends_where_enough_seeds_got_there_at_one_time():
    # 8 of 8: with half left the chance to see none is 0.5^8 < 0.025, so 79 is the upper end.
    found = median_time([67, 72, 72, 72, 74, 75, 79, 79], [400] * 8)
    assert (found.value, found.low, found.high) == (72, 67, 79)
    same = median_time([24.0] * 6, [400] * 6)
    assert (same.value, same.low, same.high) == (24, 24, 24)
    assert median_time([24.0] * 5, [400] * 5).high == math.inf  # 0.5^5 > 0.025


def test_speedup_is_the_ratio_of_medians_and_a_lower_bound_where_the_slow_one_never_got_there():
    found = speedup([400, 440, 420], [100, 105, 110], [600] * 3)
    assert found.value == 4.0
    assert 400 / 110 <= found.low <= 4.0 <= found.high <= 440 / 100
    bound = speedup([None] * 4, [100] * 4, [600] * 4)
    assert (bound.value, bound.low, bound.high) == (math.inf, 6.0, math.inf)
    assert math.isnan(speedup([100, 100], [None, None], [600] * 2).value)


def test_paired_differences_use_equal_seeds_and_the_exact_permutation_test():
    found, p = paired({1: 3.0, 2: 4.0, 3: 5.0, 9: 100.0}, {1: 1.0, 2: 2.0, 3: 3.0, 8: 0.0})
    assert (found.value, found.low, found.high, found.n) == (2.0, 2.0, 2.0, 3)
    assert p == 0.25  # 2 of the 8 sign changes are as extreme
    found, p = paired(dict.fromkeys(range(8), 1.0), dict.fromkeys(range(8), 0.0))
    assert p == 2 / 2**8


def test_logrank_tells_groups_apart_only_where_they_differ():
    early, late = [50, 55, 60, 65, 70, 75], [400, 420, 440, 460, None, None]
    assert logrank(early, [600] * 6, late, [600] * 6) < 0.01
    assert logrank(early, [600] * 6, early, [600] * 6) == pytest.approx(1.0)
    assert math.isnan(logrank([None], [9], [None], [9]))


# --- verdicts


def claim(comparator, value, unit="%", measure="best", **more):
    return Claim("id", "says", comparator, value, unit, measure=measure, **more)


@pytest.mark.parametrize(("made", "values", "verdict"), [
    (claim("=", 90.7), [90.5, 90.7, 90.8], "holds"),  # 90 %: 90.41 to 90.92
    (claim("=", 90.7), [90.0, 90.7, 91.2], "inconclusive"),
    (claim("=", 90.7), [92.4, 92.5, 92.6], "does not hold"),  # better is not equal
    (claim("~", 140, "epoch", "fit"), [130, 135, 141, 150], "holds"),
    (claim("~", 140, "epoch", "fit"), [115, 110, 121, 118, 112, 109, 124, 117], "inconclusive"),
    (claim(">", 600, "epoch", "grok"), [math.inf] * 5, "holds"),
    (claim("<", 1.05, "x", "rebound"), [1.0, 1.01, 1.0], "holds"),
    (claim(">", 0, "ppl", "lead"), [0.5, 0.6, 0.7], "holds"),
    (claim(">", 0, "ppl", "lead"), [-0.1, 0.1, 0.0], "does not hold"),  # 1 % of 80 is 0.8
    (claim("=", 15, cannot="needs many devices"), [15.0, 15.0], "cannot be tested here"),
    (claim("=", 5, withdrawn="no number"), [5.0, 5.0], "withdrawn"),
    (claim("=", 5, withdrawn="upstream: 6"), [5.0, 5.0], "withdrawn upstream"),
])
def test_verdicts_follow_the_rule_with_the_tolerance_of_the_unit(made, values, verdict):
    log = made.unit in ("epoch", "x")
    assert judge(made, sample(values, log=log, reference=80.0)).word == verdict


def test_a_verdict_says_which_side_ours_is_on_and_nothing_of_what_was_not_run():
    assert judge(claim("=", 90.7), None).word == "not yet run"
    assert judge(claim("=", 90.7), sample([92.4, 92.5, 92.6])).why == "ours is higher"


def run(row, seed, accuracy, grok=None, **more):
    epochs = len(accuracy)
    return {"row": row, "config": "c", "scale": "full", "protocol": "published", "seed": seed,
            "status": "completed", "epochs": epochs, "steps": 8 * epochs, "best": {},
            "milestones": {"fit": 1, "grok": grok, "converged": grok}, "wall_seconds": 1.0,
            "device": "CPU", "threads": 1, "torch": "2", "commit": "abcdef0", "settings": "s",
            "uncommitted_changes": False, "sources": "s", "peak_memory_bytes": 1,
            "curve": {"eval_accuracy": accuracy, "train_loss": [1.0] * epochs,
                      "gradient_evaluations": [16 * (e + 1) for e in range(epochs)],
                      "seconds": [0.5 * (e + 1) for e in range(epochs)], **more}}


RUNS = {"settings": {"s": {}}, "sources": {}, "runs": [
    run("AdamW", 1, [0.1, 0.3, 0.5, 0.95], 4), run("AdamW", 2, [0.1, 0.2, 0.3, 0.4]),
    run("ARS2-Neo AGA", 1, [0.5, 0.95], 2), run("ARS2-Neo AGA", 2, [0.4, 0.97], 2)]}


@pytest.mark.parametrize(("measure", "unit", "value"), [
    ("best", "%", 96.0), ("final", "%", 96.0), ("train_loss", "nats", 1.0),
    ("epochs_to_best", "epochs", 2.0), ("grok", "epoch", 2.0), ("lead", "%", (0 + 57) / 2),
    ("rebound", "x", 1.0), ("lag", "points", -(0 + 57) / 2), ("evaluations", "x", 1.0),
    ("speedup", "x", 2.0), ("delay", "%", -math.inf),  # the median of -50 and one without end
])
def test_measures_by_hand(measure, unit, value):
    made = claim("=", 1.0, unit, measure, row="ARS2-Neo AGA", against="AdamW")
    found = evidence(made, TABLES["readme-3.3"], RUNS, "full", "published")
    assert found.value == pytest.approx(value)


def test_numbers_of_another_data_set_are_not_refuted_but_orders_are_judged():
    table = replace(TABLES["readme-3.3"], other_data="other text")
    of_row = {"table": table.name, "row": "ARS2-Neo AGA"}
    page = claims_table([claim("=", 10, **of_row), claim(">", 0, "%", "lead", **of_row,
                                                         against="AdamW")], table, RUNS)
    number, order = page.splitlines()[2:]
    assert "**cannot be tested here**: other text" in number and "96" in number
    assert "**inconclusive**" in order and "not yet" not in order


def grid_run(row, level, epoch, seed=1, epochs=20):
    accuracy = [0.96 if epoch and e >= epoch else 0.1 for e in range(1, epochs + 1)]
    return run(row, seed, accuracy) | {"levels": [level]}


GRID = [("a", 4, 2), ("b", 10, 4), ("c", None, 8), ("d", 6, 6), ("e", None, None), ("f", 3, 6)]
GRID_TABLE = replace(TABLES["readme-3.3"], name="grid", threshold=0.95, grid={
    "factor": {level: () for level, *_ in GRID}}, rows=tuple(
        row for row in TABLES["readme-3.3"].rows if row.label in ("AdamW", "ARS2-Neo AGA")))
GRID_RUNS = {"settings": {}, "sources": {}, "runs": [
    grid_run(row, level, epochs[row != "AdamW"])
    for level, *epochs in GRID for row in ("AdamW", "ARS2-Neo AGA")]}


@pytest.mark.parametrize(("measure", "unit", "value", "n"), [
    ("mean_epoch", "epoch", (2 + 4 + 8 + 6 + 20 + 6) / 6, 6),
    ("sooner_by", "epochs", (4 + 10 + 20 + 6 + 20 + 3 - 46) / 6, 6),
    ("first_share", "%", 75.0, 4),  # a, b, c of a, b, c, f: d is a tie, e was reached by neither
    ("paired_ratio", "x", (2 * 2.5 * 1 * 0.5) ** (1 / 4), 4),  # a, b, d, f
])
def test_measures_over_a_grid_by_hand(measure, unit, value, n):
    made = claim("=", 1.0, unit, measure, row="ARS2-Neo AGA", against="AdamW")
    found = evidence(made, GRID_TABLE, GRID_RUNS, "full", "published")
    assert (found.value, found.n) == (pytest.approx(value), n)
    more = {"runs": [*GRID_RUNS["runs"], grid_run("AdamW", "a", 20, seed=2)]}  # not shared
    assert evidence(made, GRID_TABLE, more, "full", "published").estimate == found.estimate
    only = replace(made, where=("b",))
    one = evidence(only, GRID_TABLE, GRID_RUNS, "full", "published")
    assert one.value == pytest.approx({"mean_epoch": 4, "sooner_by": 6, "first_share": 100,
                                       "paired_ratio": 2.5}[measure])


def test_each_row_at_its_best_configuration_by_hand():
    two = replace(GRID_TABLE, grid={"task": dict.fromkeys("xyz", ()),
                                    "rate": dict.fromkeys("lh", ())})
    epochs = {"x": ((8, 6), (4, 3)), "y": ((None, 9), (9, 2)), "z": ((None, 7), (None, 5))}
    runs = [grid_run(row, "", epochs[task][rate == "h"][row != "AdamW"]) | {"levels": [task, rate]}
            for task in epochs for rate in "lh" for row in ("AdamW", "ARS2-Neo AGA")]
    made = claim(">", 1, "x", "best_ratio", row="ARS2-Neo AGA", against="AdamW")
    best = evidence(made, two, {"runs": runs}, "full", "published")
    assert (best.value, best.n) == (pytest.approx((4 / 3 * 9 / 2) ** 0.5), 2)  # x and y


def test_a_page_names_the_data_of_runs_that_recorded_it():
    runs = [run("AdamW", 1, [0.5]), run("AdamW", 2, [0.5]) | {"data": "b" * 7},
            run("ARS2-Neo AGA", 1, [0.5]) | {"data": "a" * 7}]
    pages = [render(TABLES["readme-3.3"], RUNS | {"runs": part}, []) for part in (runs, runs[:1])]
    assert "; commit abcdef0; data aaaaaaa, bbbbbbb; seeds 1, 2." in pages[0]
    assert "; commit abcdef0; seeds 1." in pages[1]


def test_a_run_that_diverged_in_its_first_epoch_has_a_place_on_the_page(tmp_path):
    table = replace(TABLES["paper-4.3"], baseline="AdamW")
    gone = run("AdamW", 2, []) | {"status": "diverged", "curve": {}}
    row, = (row.label for row in table.rows if row.label.startswith("Muon"))
    metric = table.metric("published").name
    runs = [run("AdamW", 1, [0.5, 0.6], **{metric: [9.0, 8.0]}), gone, gone | {"row": row}]
    page = render(table, RUNS | {"runs": runs}, [])
    assert f"Diverged: AdamW seed 2, {row} seed 2." in page
    draw(tmp_path / "x.png", table, RUNS | {"runs": runs}, [])
    assert (tmp_path / "x.png").exists()


def test_a_page_names_the_runs_that_older_code_made(monkeypatch):
    runs = [run("AdamW", 1, [0.5]), run("ARS2-Neo AGA", 1, [0.5]) | {
        "recipes": {"optimizer.ars2_neo": 1}}, run("ARS2-Neo AGA", 3, [0.5]) | {
        "recipes": {"optimizer.ars2_neo": 2}}]
    assert "older code" not in render(TABLES["readme-3.3"], RUNS | {"runs": runs[:2]}, [])
    monkeypatch.setattr("exp.harness.recipes.recipe", lambda module: 1 + ("ars2" in module))
    page = render(TABLES["readme-3.3"], RUNS | {"runs": runs}, [])
    assert ("Made by older code whose results differ (RECIPE numbers): ARS2-Neo AGA, seeds 1: "
            "optimizer.ars2_neo 1 -> 2.") in page


def test_the_page_of_a_grid_has_every_configuration_and_level():
    page = render(GRID_TABLE, GRID_RUNS, [])
    assert "| c      | > 20  | 8            |" in page
    assert "6 of 6 configurations are complete" in page
    assert re.search(r"\| all +\| 6 +\| 10.5 +\| 7.667 +\| 2.833 \[", page)
    assert "| 75 [19.41, 99.37] " in page


def test_effects_and_interactions_of_two_factors_by_hand():
    """Log2 times 2, 3, 1, 3 and 3, 4, 2, 3: effects -.75, 1.25 and .5, all with error variance
    1/8 and three degrees of freedom: t = -3, 5 and 1."""
    two = replace(GRID_TABLE, grid={"a": {"plain": (), "with a": ()}, "b": {"": (), "with b": ()}})
    cells = [[a, b] for a in ("plain", "with a") for b in ("", "with b")]
    runs = [grid_run("AdamW", "", epoch, seed) | {"levels": levels}
            for seed, epochs in ((1, (4, 8, 2, 8)), (2, (8, 16, 4, 8)))
            for epoch, levels in zip(epochs, cells, strict=True)]
    keyed = {(run["seed"], *run["levels"]): run for run in runs}
    by = Yardstick.of(two, "published")
    found = effects(two, by, keyed)
    assert {name: (effect.ratio.value, effect.p) for name, effect in found.items()} == {
        "with a": pytest.approx((2**-0.75, 0.0576688), abs=1e-7),
        "with b": pytest.approx((2**1.25, 0.0153924), abs=1e-7),
        "with a and with b": pytest.approx((2**0.5, 0.3910022), abs=1e-7)}
    half = 0.25 * 3.182446305
    assert (found["with a"].ratio.low, found["with a"].ratio.high) == pytest.approx(
        (2 ** (-0.75 - half), 2 ** (-0.75 + half)))
    page = render(two, {"settings": {}, "sources": {}, "runs": runs}, [])
    assert re.search(r"\| with a +\| 0.5946 \[0.3426, 1.032\] +\|", page)
    assert re.search(r"\| with b +\| 2.378 \[1.37, 4.128\] \* +\|", page)  # Holm: 3 x .0154
    late = keyed | {(1, "with a", "with b"): grid_run("AdamW", "", None)}
    assert [effect.bound for effect in effects(two, by, late).values()] == ["≥ ", "≥ ", "? "]
    assert effects(two, by, {key: run for key, run in keyed.items() if key[0] == 1}) == {}


def test_without_a_milestone_the_effects_are_those_on_the_last_value_by_hand():
    """Perplexities 4, 8, 2, 8 and 8, 16, 4, 8: effects as above."""
    two = replace(TABLES["hooks-wikitext2"], grid={"a": {"plain": (), "with a": ()},
                                                   "b": {"": (), "with b": ()}})
    cells = [[a, b] for a in ("plain", "with a") for b in ("", "with b")]
    runs = [run("AdamW", seed, []) | {"levels": levels, "epochs": 2,
                                      "curve": {"eval_perplexity": [90.0, last]}}
            for seed, every in ((1, (4.0, 8.0, 2.0, 8.0)), (2, (8.0, 16.0, 4.0, 8.0)))
            for last, levels in zip(every, cells, strict=True)]
    keyed = {(run["seed"], *run["levels"]): run for run in runs}
    by = Yardstick.of(two, "published")
    assert [effect.ratio.value for effect in effects(two, by, keyed).values()] == pytest.approx(
        [2**-0.75, 2**1.25, 2**0.5])
    page = render(two, {"settings": {}, "sources": {}, "runs": runs}, [])
    assert "the last perplexity with it over the last perplexity with" in page
    assert re.search(r"\| with a +\| with b +\| 8, 8 ", page)
    with pytest.raises(ConfigError, match="a grid needs a milestone"):
        Yardstick.of(replace(two, task="cifar"), "published")
    diverged = runs[3] | {"curve": {"eval_perplexity": [90.0, None]}}  # counts at its worst reading
    late = effects(two, by, keyed | {(1, "with a", "with b"): diverged})
    assert [effect.bound for effect in late.values()] == ["≥ ", "≥ ", "? "]
    assert late["with a"].ratio.value == pytest.approx(2**-0.75 * (90 / 8) ** 0.25)


def test_overheads_come_from_the_full_training_steps_of_the_benchmark():
    def row(ratio):
        return {"ratio": ratio, "ratio_low": ratio - 0.02, "ratio_high": ratio + 0.02, "rounds": 9}

    configs = ["lrp_cifar10_adamw_100e", "lrp_wikitext2_adamw_20e"]
    bench = {"results": {"lrp_cifar10_adamw_100e": {"Base": row(1.04)},
                         "lrp_wikitext2_adamw_20e": {"Base": row(1.10)},
                         "lrp_grok_adamw_600e": {"Base": row(3.0)}}}
    made = claim("~", 5.0, "%", "extra_compute", row="Base", against="AdamW")
    found = overhead(made, [bench], configs)
    assert (found.value, found.n) == (pytest.approx(7.0), 1)
    assert judge(made, found).word == "inconclusive"  # one machine
    others = [{"results": {config: {"Base": row(ratio)} for config in configs}}
              for ratio in (1.06, 1.075)]
    assert judge(made, overhead(made, [bench, *others], configs)).word == "holds"
    for config, ratio in zip(configs, (1.2, 1.4), strict=True):
        bench["results"][config]["Sync"] = {**row(2.0), "memory_ratio": ratio}
    made = claim("<", 1.0, "%", "extra_memory", row="Sync")
    found = overhead(made, [bench], configs)
    assert (found.value, *found.interval(0.95)) == pytest.approx((30.0, 20.0, 40.0))
    assert judge(made, found).word == "does not hold"  # bytes are the same on every machine
    assert overhead(claim("~", 5.0, "%", "extra_compute", row="NorMuon"), [bench], configs) is None
    bench["results"]["lrp_cifar10_adamw_100e"]["Sync"]["rounds"] = 1  # memory does not vary
    assert overhead(made, [bench], configs).value == found.value
    assert overhead(claim("~", 9.0, "%", "extra_compute", row="Sync"), [bench], configs) is None
    for config in bench["results"]:  # a step count of four bytes less
        bench["results"][config]["AdaMuon"] = {**row(1.0), "memory_ratio": 1 - 7e-8}
    found = overhead(claim("=", 0.0, "%", "extra_memory", row="AdaMuon"), [bench], configs)
    assert str(found.value) == "0.0"


def test_the_best_within_a_budget_counts_whole_epochs_only():
    slow = run("AdamW", 1, [0.1, 0.3, 0.5, 0.4])
    by = Yardstick.of(TABLES["readme-3.3"], "published")
    assert by.best(slow, "epochs", 2) == 0.3
    assert by.best(slow, "gradient_evaluations", 63) == 0.5
    assert by.best(slow, "seconds", 9) == 0.5
    assert math.isnan(by.best(slow, "seconds", 0.4))


# --- registry


def test_every_claim_names_a_measure_a_table_and_rows_that_exist():
    assert len({made.id for made in CLAIMS}) == len(CLAIMS)
    assert sum(bool(made.log) for made in CLAIMS) == 106
    for made in CLAIMS:
        assert made.cannot or made.measure
        if made.table in TABLES:
            rows = {row.label for row in TABLES[made.table].rows}
            assert made.row in rows and (not made.against or made.against in rows), made.id
            milestones = task_named(TABLES[made.table].task).milestones
            assert made.measure in {*MEASURES, *milestones}, made.id


def test_every_row_resolves_at_every_scale_and_under_every_protocol():
    for table in TABLES.values():
        jobs = [table.job(row, 1, cell, Path("o")) for cell in table.cells() for row in table.rows]
        assert all(job.settings()["experiment"]["task"] == table.task for job in jobs)
        assert len({job.folder for job in jobs}) == len(jobs)
    with pytest.raises(ConfigError, match="readme-3.3"):
        select_tables(PAPERS, ["readme-9"])


def test_the_fixed_protocol_routes_and_decays_alike():
    table = TABLES["readme-3.3"]
    for row in table.rows:
        settings = table.job(row, 1, Cell("full", "fixed"), Path("o")).settings()["optimizer"]
        assert settings.get("routing", "role") == "role"
        assert settings.get("adamw", {"weight_decay": 1.0})["weight_decay"] == 1.0


# --- running


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The grokking table with two rows, tiny and two epochs long; returns a runner."""
    tiny = tuple(TINY["grokking"]) + ("experiment.epochs=2",)
    table = TABLES["readme-3.3"]
    rows = tuple(row for row in table.rows if row.label in ("AdamW", "ARS2-Neo AGA"))
    table = replace(table, rows=rows, scales={"full": tiny}, protocols={"published": ()})
    monkeypatch.setattr(command, "select_tables", lambda papers, names=(): [table])

    def reproduce(*options):
        return command.main(["readme-3.3", "--outputs", str(tmp_path), "--seeds", "1", *options])

    return table, reproduce, tmp_path


def test_a_table_is_run_kept_shown_and_not_run_again(small, capsys, monkeypatch):
    table, reproduce, outputs = small
    assert reproduce("--list") == 0
    assert "2 to run: 2 never timed" in capsys.readouterr().out
    assert reproduce("--dry-run", "--only", "lrp_grok_adamw_600e") == 0
    assert "1 to run: 1 never timed" in capsys.readouterr().out
    assert reproduce("--list", "--only", "nonsense") == 2
    assert "lrp_grok_adamw_600e" in capsys.readouterr().err
    plan = outputs / "plan.json"
    assert reproduce("--plan", str(plan)) == 0
    planned = json.loads(plan.read_text())["jobs"]
    assert [(job["task"], job["units"]) for job in planned] == [("grokking", 2), ("grokking", 4)]
    assert planned[0]["argv"][:4] == ["-m", "exp.grokking.train", "--config",
                                      "config/lrp_grok_adamw_600e.toml"]
    assert reproduce("--workers", "2") == 0
    paper = outputs / "paper"
    kept = json.loads((paper / "readme-3.3.json").read_text())
    assert [(r["row"], r["seed"], r["epochs"]) for r in kept["runs"]] == [
        ("AdamW", 1, 2), ("ARS2-Neo AGA", 1, 2)]
    page = (paper / "readme-3.3.md").read_text()
    assert "| ARS2-Neo AGA |" in page and "one seed has no interval" in page
    assert (paper / "readme-3.3.png").stat().st_size > 10_000
    assert "readme-3.1-1-best" in (paper / "verdicts.md").read_text()

    def forbidden(*_):
        raise AssertionError("a finished run was run again")

    monkeypatch.setattr(command, "run_jobs", forbidden)
    assert reproduce() == 0  # from the folders
    for folder in outputs.glob("lrp_*"):
        folder.rename(outputs / f"away-{folder.name}")
    assert reproduce() == 0  # from the kept records
    assert reproduce("--render") == 0
    assert (paper / "readme-3.3.md").read_text() == page
    kept = json.loads((paper / "readme-3.3.json").read_text())
    kept["runs"][0]["recipes"] = {"exp.harness": 7}
    (paper / "readme-3.3.json").write_text(json.dumps(kept))
    with pytest.raises(AssertionError):
        reproduce()  # another RECIPE: run again
    assert reproduce("--any-version") == 0
    kept = json.loads((paper / "readme-3.3.json").read_text())
    for settings in kept["settings"].values():
        del settings["experiment"]["compile"]  # as if the key had come later, with a default
    (paper / "readme-3.3.json").write_text(json.dumps(kept))
    assert reproduce("--any-version") == 0
    capsys.readouterr()


@pytest.fixture
def here(monkeypatch):
    """exp.reproduce trains in this process."""
    monkeypatch.setattr(command, "launcher_of", lambda *_: Here())


def test_until_starts_what_fits_and_stops_what_does_not(small, here, capsys, monkeypatch):
    _, reproduce, outputs = small
    monkeypatch.setattr(command.Outlook, "seconds", lambda self, job: 900.0 if (
        "adamw" in job.name) else None)
    assert reproduce("--until", "600") == 130
    assert "lrp_grok_adamw_600e/seed1: not started, it needs about 900 s" in capsys.readouterr().err
    kept = json.loads((outputs / "paper" / "readme-3.3.json").read_text())
    assert [run["row"] for run in kept["runs"]] == ["ARS2-Neo AGA"]
    with pytest.raises(KeyboardInterrupt), stopped_after(0.05):
        time.sleep(5)


def finished_elsewhere(small, tmp_path):
    """The two runs of the small table, made in another folder."""
    table, reproduce, outputs = small
    assert reproduce() == 0
    results = tmp_path / "results"
    results.mkdir()
    for folder in outputs.glob("lrp_*"):
        folder.rename(results / folder.name)
    (outputs / "paper" / "readme-3.3.json").unlink()
    return results


def adopted(reproduce, results, capsys):
    capsys.readouterr()
    assert reproduce("--adopt", str(results)) == 0
    return dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())


def test_runs_made_elsewhere_are_adopted_whole_or_not_at_all(small, here, tmp_path, capsys,
                                                            monkeypatch):
    _, reproduce, outputs = small
    results = finished_elsewhere(small, tmp_path)
    adamw, aga = "lrp_grok_adamw_600e/seed1", "lrp_grok_ars2_neo_aga_400e/seed1"
    with tarfile.open(tmp_path / "results.tar.xz", "w:xz") as tar:
        tar.add(results, "results")
    lines = (results / adamw / "metrics.jsonl").read_text().splitlines()
    (results / adamw / "metrics.jsonl").write_text(lines[0] + "\n")
    (results / aga / "config.toml").write_text(
        (results / aga / "config.toml").read_text().replace("rho = 0.1", "rho = 0.2"))
    shutil.copytree(results / aga, results / "cut" / "seed1")
    (results / "cut" / "seed1" / "run.json").unlink()
    assert {adamw: "not imported: metrics.jsonl lacks some of the 2 epochs in its summary",
            aga: "not imported: no table has a run with these settings",
            "cut/seed1": "not imported: missing run.json"}.items() <= adopted(
                reproduce, results, capsys).items()
    said = adopted(reproduce, tmp_path / "results.tar.xz", capsys)
    assert said["results/" + adamw] == "imported into readme-3.3"
    kept = json.loads((outputs / "paper" / "readme-3.3.json").read_text())
    assert [(run["row"], run["seed"]) for run in kept["runs"]] == [
        ("AdamW", 1), ("ARS2-Neo AGA", 1)]
    assert "| ARS2-Neo AGA |" in (outputs / "paper" / "readme-3.3.md").read_text()
    said = adopted(reproduce, tmp_path / "results.tar.xz", capsys)
    assert said["results/" + aga] == "not imported: this run is already in the records"
    assert reproduce("--adopt", str(tmp_path / "nothing.tar")) == 2
    monkeypatch.setattr("exp.reproduce.adopt.LARGEST", 1000)
    assert reproduce("--adopt", str(tmp_path / "results.tar.xz")) == 2
    assert "has more than" in capsys.readouterr().err


def test_jobs_resume_keep_other_runs_and_report_failures(tmp_path, capfd):
    config = Path("config/lrp_grok_adamw_600e.toml")
    tiny = tuple(TINY["grokking"])
    folder = tmp_path / "lrp" / "seed1"
    job = Job("grokking", config, 1, folder, (*tiny, "experiment.epochs=1"))
    longer = Job("grokking", config, 1, folder, (*tiny, "experiment.epochs=2"))
    broken = Job("grokking", config, 2, tmp_path / "lrp" / "seed2", (*tiny, "data.fraction=1e-9"))
    assert state(job) == "missing"
    assert run_jobs([job, broken], Local(2)) == {job: 0, broken: 2}
    assert "lrp seed 2: refused" in capfd.readouterr().err
    assert state(job) == "finished"
    assert state(longer) == "other"
    summary = folder / "summary.json"
    summary.write_text(summary.read_text().replace("completed", "interrupted"))
    assert state(job) == "waiting"
    assert run_jobs([longer], Here()) == {longer: 0}
    assert (tmp_path / "lrp" / "seed1.other1" / "metrics.jsonl").exists()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("text", ["[optimizer]\nspam = 1\n", "no TOML"])
def test_a_folder_whose_settings_are_no_longer_understood_is_set_aside(text, small):
    table, _, outputs = small
    job = table.job(table.rows[0], 1, Cell("full", "published"), outputs)
    job.folder.mkdir(parents=True)
    (job.folder / "config.toml").write_text(text)
    (job.folder / "summary.json").write_text('{"status": "completed"}')
    assert collect(table, outputs, read_kept(outputs / "none.json"))["runs"] == []
    assert state(job) == "other"
    job.work()
    assert (job.folder.parent / "seed1.other1" / "config.toml").read_text() == text


def test_ctrl_c_stops_every_job_with_a_checkpoint(tmp_path, monkeypatch):
    job = Job("grokking", Path("config/lrp_grok_adamw_600e.toml"), 1, tmp_path / "a" / "seed1",
              (*TINY["grokking"], "experiment.epochs=100000"))

    def interrupt(seconds):
        if (job.folder / "metrics.jsonl").exists():
            raise KeyboardInterrupt
        harness_time.sleep(seconds)

    harness_time = queue.time
    monkeypatch.setattr(queue, "time", type("Clock", (), {
        "sleep": staticmethod(interrupt), "monotonic": staticmethod(harness_time.monotonic)}))
    with pytest.raises(queue.Stopped):
        run_jobs([job])
    assert json.loads((job.folder / "summary.json").read_text())["status"] == "interrupted"
    assert (job.folder / "latest.pt").exists()
    assert state(job) == "waiting"


def test_a_damaged_kept_file_is_one_clear_error(tmp_path):
    path = tmp_path / "readme-3.3.json"
    path.write_text('{"runs": [')
    with pytest.raises(ConfigError, match="damaged"):
        read_kept(path)


# --- what is committed


@pytest.mark.parametrize(
    "path", [PAPER / f"{name}.json" for name in TABLES if (PAPER / f"{name}.json").exists()],
    ids=lambda path: path.stem)
def test_committed_pages_are_what_their_json_says(path):
    kept = read_kept(path)
    assert kept["runs"]
    assert path.with_suffix(".md").read_text(encoding="utf-8") == render(
        TABLES[path.stem], kept, [claim for claim in CLAIMS if claim.table == path.stem])
    assert path.with_suffix(".png").exists()


def test_committed_verdicts_are_what_the_records_say():
    verdicts = PAPER / "verdicts.md"
    assert verdicts.read_text(encoding="utf-8") == render_verdicts(PAPERS, PAPER)


def test_records_survive_writing_and_reading(tmp_path):
    write_json(tmp_path / "a.json", RUNS, depth=2)
    assert read_kept(tmp_path / "a.json") == RUNS
    path = tmp_path / "kept" / "readme-3.3.json"
    with exclusive(tmp_path / "kept.lock"):  # another process adds runs
        adding = threading.Thread(target=keep_finished, args=(
            TABLES["readme-3.3"], tmp_path / "none", path))
        adding.start()
        write_json(path, {"runs": [], "settings": {}, "sources": {}}, depth=2)
        adding.join(0.05)
        assert adding.is_alive()
    adding.join()
    table = TABLES["readme-3.3"]
    job = table.job(table.rows[0], 1, Cell("full", "published"), tmp_path)
    assert not is_done(job, RUNS, any_version=True)
    dropped = collect(table, tmp_path / "none", {"runs": [], "settings": {},
                                                                 "sources": {}})
    assert dropped["runs"] == []
