"""exp.tune: arms and axes, suggestions, records, chains that survive being killed, boards."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data import DataError
from exp.harness.config import load_settings
from exp.harness.errors import ConfigError
from exp.harness.lock import local_process
from exp.harness.task import task_named
from exp.jobs import queue
from exp.report.jsonfile import write_json
from exp.tune import __main__ as command
from exp.tune import chain as chains
from exp.tune import (
    challenge,
    check,
    coverage,
    distinct,
    estimate,
    find_lr,
    follow_up,
    inference,
    pace,
    page,
    probe,
    verify,
)
from exp.tune.arms import NO_DECAY, OWN, Arm, all_arms, arm_named, own_arms
from exp.tune.board import write_page
from exp.tune.check import check_board
from exp.tune.distinct import require_distinct
from exp.tune.figures import best_so_far
from exp.tune.page import conclusion, edges, in_order, legend, pairs_table, render, table
from exp.tune.recommend import regrets
from exp.tune.record import first_passage, grade, trial_record
from exp.tune.space import AXES, Choice, Range, around
from exp.tune.suggest import limit, normal_scores, shared_points, study_seed, suggest, winner
from exp.tune.terms import IN_PROGRESS, numbers_of, settings_of, terms_of

TASK = task_named("grokking")
TINY = TASK.scale("tiny")
NOTHING = dict.fromkeys(("target", "cap", "studies", "trials", "fresh_seeds"))


def terms(**asked):
    return terms_of(TASK, {**NOTHING, "cap": 400, "target": 0.05, **asked}, TINY)


def trial(index, cost, params=None, grade=0.0, status=None):
    return {"index": index, "params": params or {}, "limit": 400, "cost": cost, "grade": grade,
            "status": status or ("stopped" if cost is None else "completed"), "spent": 400}


# --- arms


@pytest.fixture(scope="module")
def small():
    return terms()


@pytest.mark.parametrize("name", all_arms())
def test_every_arm_is_searched_on_the_same_axes_and_its_points_are_valid_settings(name, small):
    arm = arm_named(name, small["cap"])
    assert list(arm.axes)[:4] == list(AXES) and len(arm.axes) <= 5
    assert all(arm.axes[key].high / arm.axes[key].low == pytest.approx(900)
               for key in ("lr", "aux_lr"))
    assert Arm.of(name, json.loads(json.dumps(arm.record()))).record() == arm.record()
    trials = [trial(0, None)]
    for params in (arm.defaults, suggest(arm.axes, arm.defaults, trials, "grokking/1")):
        settings = settings_of(small, arm, arm.settings(params, small["cap"]), 3, 100)
        assert settings["experiment"]["hold"] == 2 and not settings["experiment"]["test"]
        table, rest = settings["optimizer"], settings["optimizer"]["adamw"]
        assert (table["lr"], rest["lr"]) == (params["lr"], params["aux_lr"])
        horizon = small["cap"] / arm.gradient_evaluations_per_step
        estimates = name in ("lars", "prodigy", "d_adaptation")  # their lr multiplies a rate
        found = 1e-3 if estimates else 1
        for part, rate in ((table, found * params["lr"]), (rest, params["aux_lr"])):
            if part.get("weight_decay"):  # both forget equally fast
                assert 1 / (part["weight_decay"] * rate * horizon) == pytest.approx(
                    params["decay_time"], rel=1e-4)


def test_defaults_are_the_constructors_and_levels_set_all_momenta():
    adamw = arm_named("adamw", 3200)
    table = adamw.settings(adamw.defaults, 3200)
    assert table == {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01, "routing": "role",
                     "adamw": {"lr": 1e-3, "weight_decay": 0.01}}
    assert adamw.axes["memory"] == Choice(("fast", "middle", "slow"), 2)  # 0.999 is nearest to slow
    normuon = arm_named("normuon", 3200)
    assert normuon.defaults == {"lr": 0.02, "decay_time": NO_DECAY, "aux_lr": 1e-3, "memory": OWN}
    table = normuon.settings({**normuon.defaults, "memory": "slow"}, 3200)
    assert (table["momentum"], table["beta2"]) == (0.98, 0.999)
    assert table["adamw"]["betas"] == [0.95, 0.999]
    ademamix = arm_named("ademamix", 3200)
    table = ademamix.settings({**ademamix.defaults, "memory": "fast"}, 3200)
    assert table["betas"] == [0.9, 0.95, 0.9999]  # the third is its own
    sam = arm_named("sam_adamw", 3200)
    assert sam.gradient_evaluations_per_step == 2 and sam.defaults["decay_time"] == 62.5
    table = sam.settings({**sam.defaults, "sam.rho": 0.3}, 3200)
    assert table["sam"] == {"rho": 0.3} and sam.optimizer["sam"] == {}
    costs = {name: arm_named(name, 3200).gradient_evaluations_per_step
             for name in ("ars2_neo_base", "ars2_neo_lazy", "ars2_neo_sync", "looksam_adamw")}
    assert costs == {"ars2_neo_base": 1, "ars2_neo_lazy": 1.2, "ars2_neo_sync": 2,
                     "looksam_adamw": 1.1}
    assert arm_named("sgd", 3200).defaults["lr"] == 0.1  # stated in arms.toml
    ball = arm_named("hyperball_muon", 3200)
    table = ball.settings({**ball.defaults, "decay_time": 0.5}, 3200)
    assert table["weight_decay"] == 0 and table["adamw"]["weight_decay"] > 0
    scion = arm_named("scion", 3200)
    assert scion.axes["memory"].nearest == 0  # its 0.1 is a momentum of 0.9
    assert scion.settings({**scion.defaults, "memory": "slow"}, 3200)["momentum"] == 0.02
    assert "rho" not in arm_named("ars2_neo_base", 3200).axes  # fixed there
    fast = arm_named("fast", 400, {"fast": {"name": "sgd", "lr": 0.5}})
    assert fast.settings({**fast.defaults, "decay_time": 1.0}, 400)["weight_decay"] == 0.005
    looksam = {"looksam": {"name": "adamw", "looksam": {"k": 5}}}
    assert arm_named("looksam", 400, looksam).gradient_evaluations_per_step == 1.2


@pytest.mark.parametrize("name", ["adamx", "sam", "lbfgs_"])
def test_what_is_no_arm_is_a_clear_error(name):
    with pytest.raises(ConfigError, match=name):
        arm_named(name, 100)


def test_a_users_own_file_has_arms_and_what_they_search(tmp_path):
    path = tmp_path / "arms.toml"
    path.write_text('[arms.mine]\nname = "pytorch_optimizer:AdaShift"\nlr = 0.01\n'
                    'search = { eps = [1e-12, 1e-6] }\n')
    arm = arm_named("mine", 3200, own_arms(path))
    assert (arm.axes["lr"], arm.axes["eps"]) == (around(0.01), Range(1e-12, 1e-6))
    assert list(arm.axes) == [*AXES, "eps"] and arm.defaults["eps"] == 1e-10
    table = arm.settings({**arm.defaults, "lr": 0.02, "eps": 1e-7}, 3200)
    assert (table["name"], table["lr"], table["eps"]) == (
        "pytorch_optimizer:AdaShift", 0.02, 1e-7) and "search" not in table
    for text, words in (("", "no table"), ("[arms.adamw]\nname = 'lion'", "already"),
                        ("[arms.a]\nlr = 1.0", "needs name"), ("arms = 3", "no table"),
                        ("[arms.a]\nname = 'lion'\nsearch = 3", "table of ranges")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            own_arms(path)
    for searched in ({"eps": [1.0, 0.1]}, {"eps": [0, 1]}, {"eps": [2.0, 3.0]}, {"lr": [0.1, 1.0]},
                     {"roh": [0.1, 1.0]}, {"eps": [True, 2]}):
        with pytest.raises(ConfigError, match=r"\[arms.a\] search(:| must name) (one|eps|roh)"):
            arm_named("a", 3200, {"a": {"name": "ada_eps", "search": searched}})


def test_ranges_and_choices_by_hand():
    axis = around(1e-3)
    assert (axis.at(0.5), axis.at(0.0)) == (1e-3, 3.33333e-05)
    assert axis.share(axis.at(0.3)) == pytest.approx(0.3, abs=1e-5)
    assert (axis.share(1.0), axis.clip(1.0)) == (1.0, axis.high)
    assert around(0.1, 0.05, 1.0) == Range(0.05, 1.0)
    assert [Choice(("a", "b", "c")).at(share) for share in (0, 0.34, 0.999, 1.0)] == list("abcc")
    assert Choice(("a", "b"), 1).index("other") == 1


# --- suggestions


def test_points_are_shared_by_all_arms_of_a_study():
    arms = [arm_named(name, 3200) for name in ("adamw", "muon", "sam_adamw")]
    points = [shared_points("grokking/1", arm.axes) for arm in arms]
    for row in zip(*points, strict=True):
        assert all(point[key] == row[0][key] for point in row for key in AXES)
    assert set(points[2][0]) == {*AXES, "sam.rho"}
    # The first coordinates of ARENA's example: scipy's Sobol points of seed crc32("toy/1").
    first = shared_points("toy/1", arms[0].axes)[0]
    assert [first[key] for key in AXES] == pytest.approx(
        [0.50511765, 0.50649865, 0.13454873, 0.93329371], abs=1e-8)
    assert study_seed("toy/1") == 2983673295


def test_trials_are_ordered_hits_by_cost_then_misses_by_grade_then_diverged():
    trials = [trial(0, None, grade=0.3), trial(1, 200), trial(2, None, status="diverged"),
              trial(3, 100), trial(4, None, grade=1.2), trial(5, 100)]
    assert [place for _, place in sorted(zip(normal_scores(trials), range(6), strict=True))] == [
        3, 5, 1, 4, 0, 2]
    assert winner(trials)["index"] == 3
    assert sum(normal_scores(trials)) == pytest.approx(0) and normal_scores(trials)[3] == (
        pytest.approx(-1.382994, abs=1e-6))  # norm.ppf(0.5 / 6)


def test_a_trial_may_take_twice_the_best_of_its_chain_and_a_quarter_of_the_cap():
    assert limit([], 3200) == limit([trial(0, None)], 3200) == 3200
    assert limit([trial(0, None), trial(1, 1000)], 3200) == 2000
    assert limit([trial(0, 1000), trial(1, 200)], 3200) == 800
    assert limit([trial(0, 2000)], 3200) == 3200


def test_a_suggestion_is_a_pure_function_of_the_records_and_moves_to_the_best():
    arm = arm_named("adamw", 3200)
    trials = []
    for index in range(9):
        params = suggest(arm.axes, arm.defaults, trials, "grokking/1")
        assert index or params == arm.defaults
        distance = abs(math.log(params["lr"] / 1e-2)) + abs(math.log(params["decay_time"]))
        trials.append(trial(index, 200 * math.exp(distance), params))
    again = json.loads(json.dumps(trials))
    assert suggest(arm.axes, arm.defaults, again, "grokking/1") == suggest(
        arm.axes, arm.defaults, trials, "grokking/1")
    assert suggest(arm.axes, arm.defaults, again, "grokking/2") != suggest(
        arm.axes, arm.defaults, trials, "grokking/1")
    costs = [t["cost"] for t in trials]
    assert min(costs[4:]) < min(costs[:4])  # the search finds better than defaults and points
    assert all(arm.axes[key].low <= t["params"][key] <= arm.axes[key].high
               for t in trials[1:] for key in ("lr", "decay_time", "aux_lr"))


# --- records


def test_a_target_is_reached_with_readings_in_a_row():
    evaluations, values = range(100, 700, 100), [.5, .991, .93, .992, .995, .97]
    for hold, most, cost in ((1, 600, 200), (2, 600, 400), (3, 600, None), (2, 350, None)):
        assert first_passage(evaluations, values, 0.99, "max", hold, most) == cost
    assert first_passage([1, 2], [50, 60], 60, "min", 2, 2) == 1


def test_misses_are_graded_by_the_furthest_target_then_its_cost_then_an_early_reading():
    aims = {"regime": "race", "metric": "a", "mode": "max", "targets": [0.5, 0.9],
            "main_target": 0.9, "hold": 1, "cap": 400, "grade_at": 100}

    def run(*values):
        return [{"gradient_evaluations": 50 * (i + 1), "a": value}
                for i, value in enumerate(values)]

    better = [run(.1, .2, .6, .95), run(.1, .6), run(.1, .2, .6), run(.3, .4), run(.1, .2)]
    grades = [grade(lines, aims, 400) for lines in better]
    assert grades == sorted(grades, reverse=True) and len(set(grades)) == 5
    assert grade(better[0], aims, 150) == grade(better[2], aims, 400)  # nothing beyond the limit
    record = trial_record(3, {}, 150, {"status": "completed", "lines": better[0]}, aims)
    assert (record["cost"], record["status"], record["spent"]) == (None, "stopped", 150)
    record = trial_record(3, {}, 400, {"status": "diverged", "lines": better[0]}, aims)
    assert (record["cost"], record["status"]) == (None, "diverged")


def test_a_schedule_that_ends_needs_its_length():
    with pytest.raises(ConfigError, match="period_epochs"):
        terms_of(TASK, NOTHING, [*TINY, 'schedule.name="cosine"'])
    made = terms_of(TASK, NOTHING, [*TINY, 'schedule.name="cosine"', "schedule.period_epochs=9"])
    assert made["evaluate_every"] == 2 and made["main_target"] == 0.99


# --- the estimator and its check, by ARENA's worked examples


@pytest.mark.parametrize("override", ["optimizer.lr=1.0", "experiment.seed=3",
                                      'schedule.name="constant"', 'schedule={name = "cosine"}'])
def test_an_override_of_what_the_search_sets_is_refused(small, override):
    arm = arm_named("adamw", 400)
    aims = {**small, "regime": "anneal", "set": [*TINY, override]}
    with pytest.raises(ConfigError, match=f"cannot change {override.split('=')[0]}"):
        settings_of(aims, arm, arm.settings(arm.defaults, 400), 0, 400)


def test_the_estimator_gives_the_worked_example():
    a, b, c = (np.log(costs) for costs in (
        [600, 540, 700, 500, 900, 640], [420, 400, 610, 450, 520, 430],
        [640, 500, 820, 560, 760, 700]))
    pooled = (np.var(b - a, ddof=1) + np.var(c - a, ddof=1)) / 2
    assert pooled == pytest.approx(0.021764, abs=5e-7)
    found = inference.comparison(b - a, pooled, False, False)
    expected = {"ratio": .735159, "low": .631898, "high": .855295, "p": .001093, "e": 16.843676,
                "wins_a_study": .941148}
    assert {key: round(found[key], 6) for key in expected} == expected
    assert [round(end, 6) for end in found["anytime"]] == [.597867, .903978]
    assert (found["studies_needed"], found["bound"], found["equal"]) == (26, "", False)
    found = inference.comparison(c - a, pooled, True, True)
    expected = {"ratio": 1.030397, "low": .909567, "high": 1.167279, "p": .604399, "e": .241612,
                "wins_a_study": .421916, "studies_needed": 19}
    assert {key: round(found[key], 6) for key in expected} == expected
    assert found["bound"] == "unknown"
    assert inference.benjamini_hochberg([.01, .04, .03]) == pytest.approx([.03, .04, .04])


def test_study_values_are_restricted_means_and_bounds_stop_verdicts():
    aims = {"regime": "race", "main_target": 0.5, "mode": "max", "hold": 1, "cap": 2000}

    def study(*costs):
        return {"fresh": [{"status": "completed", "curve": {
            "evaluations": [400, 500], "metric": [cost == 400, cost in (400, 500)]}}
            for cost in costs]}

    values, censored = estimate.study_values(aims, [study(400, None), study(400, 500)])
    assert values == pytest.approx([6.796184, 6.103036], abs=5e-7) and censored == [True, False]
    row = {"p": 0.001, "ratio": 0.5, "bound": "at least", "equal": False}
    rows = [row, {**row, "bound": ""}, {**row, "ratio": 2.0}]
    estimate._judge(rows, 0.05)
    assert [r["verdict"] for r in rows] == ["undecided", "cheaper", "dearer"]


@pytest.mark.parametrize("name", coverage.WORLDS)
def test_a_simulated_board_estimates_the_truth_of_its_world(name):
    """The value of an optimizer on a board of all studies is what `means` calls the truth."""
    world, rng = coverage.WORLDS[name], np.random.default_rng(1)
    runs = coverage.simulate(world, 6, rng)
    terms_, arms = coverage.board(world, runs)
    rows = estimate.results(terms_, arms)["arms"]
    assert [np.mean(row["values"]) for row in rows.values()] == pytest.approx(
        coverage.means(world, runs))
    assert len(rows) == (14 if world.scale else 12) and "verdict" in rows["arm1"]


# --- chains


def make_chain(folder, name="adamw", number=1, **asked):
    of = terms(trials=3, fresh_seeds=1, **asked)
    return chains.Chain(arm_named(name, of["cap"]), number, of, folder)


PAUSED = """
import os, signal, sys
from exp.harness.folder import RunFolder
from exp.tune.chain import main
append = RunFolder.append_metrics

def append_and_pause(folder, line):
    append(folder, line)
    if folder.path.name == "trial1":
        os.kill(os.getpid(), signal.SIGSTOP)

RunFolder.append_metrics = append_and_pause
sys.exit(main(sys.argv[1:]))
"""


def test_a_chain_killed_in_a_trial_continues_and_equals_one_that_was_not(tmp_path, monkeypatch):
    """A target out of reach: every trial takes its limit. Killed after an epoch of trial 1."""
    killed, whole = (make_chain(tmp_path / name, cap=48, target=0.999)
                     for name in ("killed", "whole"))
    for made in (killed, whole):
        made.work()
    child = subprocess.Popen([sys.executable, "-c", PAUSED, killed.folder])
    assert os.WIFSTOPPED(os.waitpid(child.pid, os.WUNTRACED)[1])
    assert local_process(killed.folder) == child.pid
    with pytest.raises(ConfigError, match=f"in use by process {child.pid}"):
        chains.acquire(killed.folder)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert len(killed.trials()) == 1 and killed.study() is None
    first = (killed.folder / "trial0" / "metrics.jsonl").stat().st_mtime_ns
    assert [chains.main([str(made.folder)]) for made in (killed, whole)] == [0, 0]
    assert (killed.folder / "trial0" / "metrics.jsonl").stat().st_mtime_ns == first
    assert (killed.folder / "trials.jsonl").read_text() == (
        whole.folder / "trials.jsonl").read_text()
    second = (killed.folder / "trial1" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in second] == list(range(1, 25))
    assert [fresh["curve"] for fresh in killed.study()["fresh"]] == [
        fresh["curve"] for fresh in whole.study()["fresh"]]
    assert not list(tmp_path.rglob("*.pt"))

    # A line of trials.jsonl that a crash cut off is made again from the trial's folder.
    path = killed.folder / "trials.jsonl"
    text = path.read_text()
    path.write_text(text[:-20])
    (killed.folder / "study.json").unlink()
    (killed.folder / "trial2" / "latest.pt").touch()  # killed between a run's end and this line
    monkeypatch.setattr(chains, "train_function", None)  # nothing is trained again
    assert chains.main([str(killed.folder)]) == 0
    assert path.read_text() == text and killed.outcome() == 0
    assert not list(tmp_path.rglob("*.pt"))


def test_a_chain_on_other_terms_is_set_aside_and_more_trials_continue_it(tmp_path):
    made = make_chain(tmp_path / "chain")
    made.work()
    assert chains.main([str(made.folder)]) == 0 and made.study()
    more = chains.Chain(made.arm, 1, {**made.terms, "trials": 4}, made.folder)
    assert more.study() is None and len(more.trials()) == 3
    more.work()
    assert (made.folder / "trials.jsonl").exists()
    other = chains.Chain(made.arm, 1, {**made.terms, "main_target": 0.06}, made.folder)
    assert other.outcome() is None
    other.work()
    assert (tmp_path / "chain.other1" / "study.json").exists() and not other.trials()
    (made.folder / "chain.json").write_text("{")  # damaged: set aside too
    other.work()
    assert (tmp_path / "chain.other2").exists() and not other.trials()
    newer = chains.Chain(made.arm, 1, {**other.terms, "sampler": {"optuna": "99"}}, made.folder)
    newer.work()
    assert not (tmp_path / "chain.other3").exists()
    with pytest.raises(ConfigError, match="cannot read a chain"):
        chains.Chain.read(tmp_path)


# --- the whole command


OPTIONS = ["grokking", "--optimizers", "adamw,adamw_again,ars2_neo_sync", "--trials", "2",
           "--studies", "2", "--fresh-seeds", "1", "--target", "0.05", "--cap", "400",
           *(word for item in TINY for word in ("--set", item))]


def run_here(jobs, launcher, report):
    """The queue in this process: importing torch takes seconds."""
    for job in jobs:
        report(job, chains.main([job.work().command[-1]]))


def probe_here(jobs, launcher):
    """The same for probes."""
    for job in jobs:
        chains.main([job.work().command[-1]], probe.Probe)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """Three arms searched from end to end, one study of them by the real queue; what was published
    after the first study of all is kept in `interim`."""
    outputs = tmp_path_factory.mktemp("tune") / "outputs"
    patch = pytest.MonkeyPatch()

    def run(jobs, launcher, report):
        queue.run_jobs(jobs[:1], launcher, report)
        run_here(jobs[1:3], launcher, report)
        shutil.copytree(outputs / "paper", outputs.parent / "interim" / "paper")
        run_here(jobs[3:], launcher, report)

    patch.setattr(command, "run_jobs", run)
    try:
        assert command.main([*OPTIONS, "--outputs", str(outputs)]) == 0
    finally:
        patch.undo()
    return outputs


def board_of(outputs):
    return json.loads((outputs / "paper" / "arena" / "grokking.json").read_text())


def test_a_search_writes_a_board_that_its_check_accepts_and_repeats_nothing(searched, tmp_path,
                                                                          monkeypatch, capsys):
    board = board_of(searched)
    assert check_board(board) == []
    assert set(board["arms"]) == {"adamw", "adamw_again", "ars2_neo_sync"}
    assert [study["number"] for study in board["arms"]["adamw_again"]["studies"]] == [3, 4]
    assert list(numbers_of("adamw", board["terms"])) == [1, 2]
    config = searched / "config" / "tuned" / "grokking_ars2_neo_sync.toml"
    settings = load_settings(config, (), TASK)
    assert settings["optimizer"]["k"] == 1 and settings["experiment"]["epochs"] == 100
    page = (searched / "paper" / "arena" / "grokking.md").read_text()
    assert page.startswith(render(board)) and "| ars2_neo_sync" in page and "Noise floor" in page
    monkeypatch.setattr(command, "run_jobs", lambda jobs, *_: pytest.fail(str(jobs)) if jobs else 0)
    assert command.main([*OPTIONS, "--outputs", str(searched)]) == 0
    assert board_of(searched) == board
    clone = tmp_path / "outputs"  # another machine has the published board alone
    shutil.copytree(searched / "paper", clone / "paper")
    assert command.main([*OPTIONS, "--outputs", str(clone)]) == 0
    assert board_of(clone) == board
    assert command.main(["--check", "--outputs", str(clone)]) == 0
    (clone / "paper" / "arena" / "grokking.md").unlink()
    assert command.main(["--render", "--outputs", str(clone)]) == 0
    assert (clone / "paper" / "arena" / "grokking.md").read_text() == page
    path = clone / "paper" / "arena" / "grokking.json"
    board["arms"]["ars2_neo_sync"]["studies"][1]["code"] = "0" * 12
    path.write_text(json.dumps(board))
    write_page(path)
    assert path.with_suffix(".md").read_text() == page + (
        "\nMade by older code whose results differ (RECIPE numbers): ars2_neo_sync, studies 2.\n")
    board["results"]["arms"]["ars2_neo_sync"]["ratio"] *= 0.9
    path.write_text(json.dumps(board))
    assert command.main(["--check", "--outputs", str(clone)]) == 1
    assert "results.arms.ars2_neo_sync.ratio" in capsys.readouterr().out


def test_a_board_in_progress_has_whole_studies_and_no_verdicts(searched, monkeypatch, capsys):
    outputs = searched.parent / "interim"
    path = outputs / "paper" / "arena" / "in_progress" / "grokking.json"
    assert not (searched / "paper" / "arena" / "in_progress" / "grokking.md").exists()
    board = json.loads(path.read_text())
    assert [len(arm["studies"]) for arm in board["arms"].values()] == [1, 1, 1]
    assert board["terms"]["studies"] == 2 and check_board(board) == []
    page = path.with_suffix(".md").read_text()
    assert "1 of the 2 announced studies" in page and "verdict" not in page
    assert command.main(["--check", "--outputs", str(outputs)]) == 0
    assert check_board({**board, "schema": "ars-arena/1"})  # is no finished one
    board["arms"]["adamw"]["studies"] = []
    assert check_board(board)
    jobs = []  # another machine goes on from what is published
    monkeypatch.setattr(command, "run_jobs", lambda missing, *_: jobs.extend(missing))
    assert command.main([*OPTIONS, "--outputs", str(outputs)]) == 1
    assert [job.number for job in jobs] == [2, 4, 2]
    jobs.clear()
    path.unlink()  # and from single chains, before a study of all arms is whole
    assert command.main([*OPTIONS, "--outputs", str(outputs)]) == 1
    assert [job.number for job in jobs] == [2, 4, 2]
    assert json.loads(path.read_text())["arms"].keys() == board["arms"].keys()  # is shown again
    assert not list((searched / "paper" / "chains").rglob("*.json"))  # they are on the board


def test_a_challenge_runs_one_arm_against_the_board_and_is_continued(searched, tmp_path,
                                                                   monkeypatch, capsys):
    outputs = tmp_path / "outputs"
    shutil.copytree(searched / "paper", outputs / "paper")
    words = [*OPTIONS[:2], "muon", *OPTIONS[3:], "--outputs", str(outputs)]
    assert command.main([*words, "--minutes", "1e-5"]) == 1
    assert "no result yet" in capsys.readouterr().err
    monkeypatch.setattr(verify, "run_jobs", probe_here)
    monkeypatch.setattr(challenge, "run_jobs", lambda jobs, launcher, look: run_here(
        jobs[:1], launcher, look))
    assert command.main(words) == 0
    assert "a comparison needs two" in capsys.readouterr().out
    path = outputs / "challenge" / "muon.json"
    assert len(json.loads(path.read_text())["arms"]["muon"]["studies"]) == 1
    chain = chains.Chain.read(outputs / "tune" / "grokking" / "muon" / "study1")
    chain.keep_in(outputs / "paper")  # as another machine has it
    shutil.rmtree(chain.folder)
    ran = []
    monkeypatch.setattr(challenge, "run_jobs", lambda jobs, launcher, look: (
        ran.extend(jobs), run_here(jobs[:2], launcher, look)))
    monkeypatch.setattr(challenge, "reproduced", lambda *_: {"adamw": True})
    assert command.main(words) == 0
    said = capsys.readouterr().out
    # The board's studies are the partners: two of adamw, then two of adamw_again.
    assert [job.name for job in ran] == [f"muon study {number}" for number in (2, 3, 4)]
    assert "lr: 0.0006667 to 0.6 (adamw: 3.333e-05 to 0.03)" in said and "study 2: ratio" in said
    assert "costs" in said and "undecided against adamw, ars2_neo_sync" in said
    mine = json.loads(path.read_text())
    assert set(mine["arms"]) == {"adamw", "muon"} and check_board(mine) == []
    assert "**muon, after 3 of at most 4 studies.**" in path.with_suffix(".md").read_text()
    assert check_board({**mine, "terms": {**mine["terms"], "studies": 3}}) == []  # all of them
    assert command.main(["--check", "--outputs", str(outputs)]) == 0

    # Arithmetic of another machine: the baseline runs here too.
    monkeypatch.setattr(challenge, "reproduced", lambda *_: {"adamw": False})
    duel = challenge.Duel(board_of(outputs), arm_named("muon", 400), outputs)
    duel.choose_partners(2)
    assert duel.reruns and [chain.arm.name for chain in duel.theirs] == ["adamw"] * 4
    assert duel.pairs() == []  # the board's own studies are no partners now

    run = next((outputs / "tune" / "grokking" / "muon" / "study2").glob("*/run.json"))
    facts = json.loads(run.read_text())
    facts["sources"]["optimizer/muon.py"] = "0" * 12  # the rule was another when this run was made
    run.write_text(json.dumps(facts))
    assert command.main(words) == 2
    assert "optimizer/muon.py has changed since muon study 2" in capsys.readouterr().err


def a_duel(ladder=None):
    """A challenge of a board of made-up results: two arms of six studies, the noise arm of six."""
    levels = {"adamw": 4.0, "muon": 3.8, **(ladder or {})}
    studies = [{"number": number, "fresh": [], "trials": []} for number in range(1, 13)]
    adamw = arm_named("adamw", 400).record()
    arms = {name: {**adamw, "studies": studies[:6]} for name in levels} | {
        "adamw_again": {**adamw, "studies": studies[6:]}}
    rows = {name: {"values": [level] * 6, "censored": [False] * 6}
            for name, level in levels.items()}
    terms = {"task": "t", "baseline": "adamw", "noise_arm": "adamw_again", "alpha": 0.05,
             "ladder": dict.fromkeys(ladder or (), 0.5) | ({"adamw_double": 2.0} if ladder else {})}
    return challenge.Duel({"terms": terms, "arms": arms, "results": {"arms": rows}},
                          arm_named("lion", 400), Path(), reruns=False)


def test_a_challenge_ends_when_enough_is_known_or_the_time_is_up(tmp_path):
    duel = a_duel()
    for anytime, bound, count, enough in (
            ([0.5, 0.9], "", 6, True), ([0.5, 0.9], "", 5, False), ([0.9, 1.1], "", 6, False),
            ([0.96, 1.04], "", 4, True), ([0.96, 1.04], "at most", 4, False),
            ([0.5, 0.9], "at most", 6, True), ([0.5, 0.9], "at least", 6, False)):
        row = {"anytime": anytime, "ratio": anytime[0], "bound": bound, "values": [0] * count}
        assert duel.is_decided(row) is enough
    # Where AdamW's loss falls by 10 % per doubling, a ratio of 0.97 is 1.24 times the budget.
    annealed = a_duel(ladder={"adamw_half": 4.1, "adamw_double": 3.9})
    row = {"anytime": [0.97, 1.02], "ratio": 0.99, "bound": "", "values": [0] * 4}
    assert duel.is_decided(row) and not annealed.is_decided(row)
    assert annealed.is_decided({**row, "anytime": [0.995, 1.005]})
    with challenge._limited(1e-4):
        time.sleep(5)
        pytest.fail("it went on")
    duel.outputs = tmp_path
    write_json(tmp_path / "challenge" / "lion.json", {"terms": {"task": "other"}}, depth=1)
    assert duel.path == tmp_path / "challenge" / "lion-t.json"  # another task's is kept


def test_a_challenge_reads_every_whole_study_and_has_the_noise_arm_as_partners(monkeypatch):
    """Two workers: study 6 may end before study 5."""
    duel, done, read = a_duel(), set(), []
    assert [study["number"] for study in duel.published] == list(range(1, 13))
    monkeypatch.setattr(chains.Chain, "study", lambda chain: (
        {"number": chain.number} if chain.number in done else None))
    monkeypatch.setattr(duel, "write", lambda: read.append(len(duel.pairs())))
    monkeypatch.setattr(duel, "row", lambda _: None)
    monkeypatch.setattr(duel, "line", lambda _: "")
    monkeypatch.setattr(duel, "is_decided", lambda _: read[-1] >= 6)

    def run(jobs, _launcher, report):
        for number in (1, 2, 3, 4, 6, 5, 7):
            done.add(number)
            report(jobs[number - 1], 0)

    monkeypatch.setattr(challenge, "run_jobs", run)
    with pytest.raises(challenge.Over):
        duel.run(2)
    assert read == [1, 2, 3, 4, 6]


def test_a_challenge_says_what_would_decide_it():
    """Six studies at half of AdamW's cost, with small and with large noise."""
    duel = a_duel()

    def said(*logs, bound=""):
        row = {"values": [4.0 + log for log in logs], "censored": [bool(bound)] * len(logs),
               "ratio": math.exp(np.mean(logs)), "bound": bound, "e": 1.0, "spent": 6000.0,
               "anytime": inference.anytime_interval(np.array(logs), 0.0)}
        rows = {"lion": row, "adamw": {"values": [4.0] * len(logs)}}
        return duel.sentences({"results": {"arms": rows, "pooled_sd": 0.0},
                               "arms": {"lion": {"ms_per_evaluation": 60.0}}})

    sure = said(*[-0.7, -0.69] * 3)
    assert "cheaper than adamw, muon" in sure[1] and "with adamw is decided" in sure[2]
    assert "undecided against adamw, muon" in said(*[-0.7, -0.69] * 3, bound="at least")[1]
    # Half the interval is sqrt(2 s2 (n + 1) / n^2 log(sqrt(n + 1) / 0.05)). With s2 = 0.768, 0.715
    # at n = 14 and 0.692 at 15; with s2 = 0.432, 0.705 at n = 8 and 0.665 at 9.
    assert "15 studies would decide it; adamw has 12, so" in said(*[-1.5, 0.1] * 3)[2]
    # A study takes a minute: 1000 evaluations of 60 ms.
    assert "3 more studies would decide it, about 3 minutes" in said(*[-1.3, -0.1] * 3)[2]


def test_a_board_is_verified_by_training_some_of_its_runs_again(searched, tmp_path, monkeypatch,
                                                                capsys):
    outputs = tmp_path / "outputs"
    shutil.copytree(searched / "paper", outputs / "paper")
    path = outputs / "paper" / "arena" / "grokking.json"
    board = board_of(outputs)
    for study in board["arms"]["adamw_again"]["studies"]:
        study["fresh"][0]["curve"]["metric"][0] += 1e-9
    path.write_text(json.dumps(board))
    counts = []
    monkeypatch.setattr(verify, "run_jobs", lambda jobs, launcher: (
        counts.append(launcher.each), probe_here(jobs, launcher)))
    assert command.main(["grokking", "--verify", "--outputs", str(outputs)]) == 1
    said = capsys.readouterr().out
    assert counts == [verify.threads_of(board["arms"]["adamw"]["studies"][0])]
    assert said.count("equal bit for bit") == 2 and said.count("differs") == 1
    assert "adamw_again, study" in said


def test_arms_with_equal_weights_are_one_arm(small):
    arms = [arm_named(name, 400) for name in ("adamw", "adamw_again", "muon", "ars2_neo_base")]
    require_distinct(arms, small)
    with pytest.raises(ConfigError, match="ada_rmsuon and ars2_neo_base are the same algorithm"):
        require_distinct([*arms, arm_named("ada_rmsuon", 400)], small)


def test_all_leaves_out_twins_and_what_cannot_be_trained(monkeypatch, tmp_path, capsys):
    weights = distinct._weights

    def fail_for_muon(arm, aims):
        if arm.name == "muon":
            raise ConfigError("cannot take a step")
        return weights(arm, aims)

    monkeypatch.setattr(command, "all_arms", lambda: ["adamw", "adamw_again", "kfac", "muon"])
    monkeypatch.setattr(distinct, "_weights", fail_for_muon)
    assert command.main([*OPTIONS[:2], "all", *OPTIONS[3:], "--outputs", str(tmp_path),
                         "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "kfac and adamw are the same" in said and "muon: cannot take" in said
    assert "adamw_again study 3" in said and "kfac study" not in said


def test_interim_results_have_an_interval_from_the_fourth_study_on():
    aims = {"regime": "race", "targets": [0.5], "main_target": 0.5, "mode": "max", "hold": 1,
            "cap": 100, "linger": 2, "studies": 6, "alpha": 0.05, "baseline": "a",
            "noise_arm": None}

    def arm(*costs):
        return {"studies": [{"trials": [], "fresh": [{"status": "completed", "curve": {
            "evaluations": [cost], "metric": [1.0]}}]} for cost in costs]}

    rows = [estimate.interim_results(aims, {"a": arm(*costs), "b": arm(*costs[::-1])}, len(costs))[
        "arms"]["b"] for costs in ([50], [50, 60, 80], [50, 60, 70, 90])]
    assert ["ratio" in row for row in rows] == [False, True, True]
    assert ["anytime" in row for row in rows] == [False, False, True]
    assert not {"p", "low", "verdict", "rank"} & rows[2].keys() and rows[2]["ratio"] == 1


# --- the annealed regime


@pytest.mark.parametrize(("regime", "words"), [("race", ("cheaper", "dearer")),
                                               ("anneal", ("better", "worse"))])
def test_a_page_begins_with_the_arms_by_verdict_then_by_ratio(regime, words):
    def row(cost, verdict, rank, bound=""):
        return {"cost": cost, "ratio": cost, "low": cost / 2, "high": 2 * cost, "bound": bound,
                "verdict": verdict, "rank": [rank, rank]}

    board = {"terms": {"regime": regime, "baseline": "adamw", "studies": 6, "mode": "min",
                       "metric": "eval_perplexity", "ladder": {"half": 0.5}},
             "results": {"arms": {
                 "half": {"cost": 0.1}, "far": row(4.0, "dearer", 4, "at least"),
                 "adamw": {"cost": 1.0, "rank": [2, 2]}, "b": row(0.5, "cheaper", 1),
                 "open": row(1.5, "undecided", 3), "a": row(0.25, "cheaper", 1)}}}
    assert conclusion(board).splitlines()[2:] == [
        f"- **{words[0]}**: a 0.25 [0.125, 0.5]; b 0.5 [0.25, 1]", "- **undecided**: open 1.5 "
        "[0.75, 3]", f"- **{words[1]}**: far ≥ 4 [2, 8]"]
    assert in_order(board) == ["a", "b", "adamw", "open", "far", "half"]


@pytest.fixture(scope="module")
def annealed(tmp_path_factory):
    """A board of two annealed arms and the baseline's ladder: 60 evaluations, 30 and 120."""
    outputs = tmp_path_factory.mktemp("anneal") / "outputs"
    patch = pytest.MonkeyPatch()
    patch.setitem(TASK.table, "tuning", {
        "target": 0.05, "targets": [0.02, 0.05], "horizon": 60, "trials": 1, "studies": 2,
        "set": []})
    patch.setattr(command, "run_jobs", run_here)
    try:
        assert command.main([
            "grokking", "--optimizers", "adamw,ars2_neo_sync", "--fresh-seeds", "1",
            "--outputs", str(outputs), *(word for item in TINY for word in ("--set", item))]) == 0
    finally:
        patch.undo()
    return outputs


def test_annealed_runs_spend_exactly_the_horizon_and_end_at_rate_zero(annealed):
    board = board_of(annealed)
    spent = {name: {trial["spent"] for study in arm["studies"] for trial in study["trials"]}
             for name, arm in board["arms"].items()}
    assert spent == {"adamw": {60}, "ars2_neo_sync": {60}, "adamw_half": {30},
                     "adamw_double": {120}}
    folder = annealed / "tune" / "grokking" / "ars2_neo_sync" / "study1" / "trial0"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 30 and lines[-1]["gradient_evaluations"] == 60
    peak = max(line["lr"] for line in lines)
    assert lines[-1]["lr"] == pytest.approx(peak * 2 / 60 / 0.2)  # of the last step
    assert check_board(board) == []
    longer = board["arms"]["ars2_neo_sync"]["studies"][0]["equal_steps"]
    assert [run["curve"]["evaluations"][-1] for run in longer] == [120]
    rows = board["results"]["arms"]
    assert [name for name in rows if "equal_steps" in rows[name]] == ["ars2_neo_sync"]
    begun = {name: {**arm, "studies": arm["studies"][:1]} for name, arm in board["arms"].items()}
    in_progress = {"schema": IN_PROGRESS, "terms": board["terms"], "arms": begun,
                   "results": estimate.interim_results(board["terms"], begun, 1)}
    assert check_board(in_progress) == [] and "equal steps" in render(in_progress)
    assert "## On the way" in (annealed / "paper" / "arena" / "grokking.md").read_text()
    worst = board["terms"]["worst"]  # log error of a model that guesses one of eleven
    assert worst == pytest.approx(math.log(10 / 11), abs=0.1)
    assert all(value <= worst for row in board["results"]["arms"].values()
               for value in row["values"])


@pytest.mark.parametrize("edit", [
    lambda arms: arms["adamw_half"]["studies"].pop(),
    lambda arms: arms["adamw_double"]["studies"][0]["trials"][0].update(limit=60),
    lambda arms: arms["adamw"]["studies"][0]["fresh"][0]["curve"]["metric"].pop(),
    lambda arms: arms["ars2_neo_sync"]["studies"][0]["fresh"][0]["curve"]["metric"].append(0.5),
    lambda arms: arms["adamw_half"]["studies"][0]["trials"][0]["params"].update(lr=0.5),
    lambda arms: arms["ars2_neo_sync"]["studies"][0]["equal_steps"][0]["curve"]["metric"].append(
        0.99),
    lambda arms: arms["ars2_neo_sync"]["studies"][0]["equal_steps"][0].update(seed=7),
    lambda arms: arms["adamw"]["studies"][0]["fresh"][0].update(
        curve={"evaluations": [], "metric": []}),
    lambda arms: [run["curve"]["metric"].__setitem__(-1, 0.99) for study in
                  arms["adamw"]["studies"] for run in study["fresh"]]])
def test_the_check_refuses_an_edited_annealed_board(annealed, edit):
    board = board_of(annealed)
    edit(board["arms"])
    assert check_board(board)


def test_a_difference_is_a_budget_by_the_ladder_of_the_baseline():
    aims = {"baseline": "adamw", "ladder": {"adamw_half": 0.5, "adamw_double": 2.0}}
    ladder = inference.Ladder.of(aims, {"adamw_half": [4.4], "adamw": [4.1],
                                        "adamw_double": [3.85]})
    assert ladder.budget(4.0 - 4.1) == pytest.approx(1.319508, abs=5e-7)
    assert (ladder.budget(1.0), ladder.budget(0.0), ladder.budget(-1.0)) == (0.5, 1.0, 2.0)
    assert ladder.effect(2.0) == pytest.approx(0.25)
    d = np.array([-0.10, -0.11, -0.09])
    row = inference.comparison(d, 0.0, False, False, ladder)
    assert row["budget"][0] == pytest.approx(1.319508, abs=5e-7)
    assert row["budget"][1] < row["budget"][0] < row["budget"][2] and not row["equal"]
    assert inference.comparison(d + 0.1, 0.0, False, False, ladder)["equal"]
    assert inference.Ladder.of(aims, {"adamw_half": [4.0], "adamw": [4.1], "adamw_double": [3.8]}
                               ) is None


def test_the_annealed_results_are_those_of_the_independent_check():
    """Forty boards of made-up curves, diverged runs among them."""
    generator = np.random.default_rng(0)
    aims = {"task": "t", "regime": "anneal", "metric": "ppl", "mode": "min",
            "targets": [70.0, 60.0], "main_target": 60.0, "cap": 100, "horizon": 100,
            "worst": math.log(100), "hold": 2,
            "evaluate_every": 20, "studies": 3, "alpha": 0.05, "baseline": "adamw",
            "noise_arm": "adamw_again", "ladder": {"adamw_half": 0.5, "adamw_double": 2.0}}

    def arm(level):
        return {"studies": [{"trials": [{"spent": 100}], "fresh": [{
            "status": "diverged" if generator.random() < 0.05 else "completed",
            "curve": {"evaluations": [20, 40, 60, 80, 100], "metric": list(
                np.exp(level + 0.02 * generator.normal(size=5)) * np.array([3, 1.5, 1.1, 1.2, 1]))}
            } for _ in range(2)]} for _ in range(3)]}

    for _ in range(40):
        arms = {name: arm(level) for name, level in (
            ("adamw", 4.1), ("adamw_again", 4.1), ("adamw_half", 4.4), ("adamw_double", 3.85),
            ("muon", 4.0), ("sgd", 4.1))}
        written = json.loads(json.dumps(estimate.results(aims, arms)))
        assert check._differences("results", check._results(aims, arms), written) == []


@pytest.mark.parametrize("edit", [
    lambda arm: arm["studies"].pop(), lambda arm: arm["studies"][0]["trials"].pop(),
    lambda arm: arm["studies"][0]["trials"][0]["params"].update(lr=0.5),
    lambda arm: arm["studies"][0]["trials"][1]["params"].update(lr=0.5),
    lambda arm: arm["studies"][0]["trials"][1].update(limit=7, cost=7, spent=7),
    lambda arm: arm["axes"].update(lr=[1e-5, 1.0, "log"]),
    lambda arm: arm["studies"][0]["fresh"][0].update(seed=5),
    lambda arm: arm["studies"][0]["fresh"][0]["curve"]["metric"].append(1.0),
    lambda arm: arm["studies"][0]["fresh"][0]["curve"]["evaluations"].reverse(),
    lambda arm: arm["studies"][0].update(seed=1), lambda arm: arm["studies"][0].pop("winner"),
    lambda arm: arm.update(ms_per_evaluation=1.5 * arm["ms_per_evaluation"]),
    lambda arm: arm["studies"][0].update(machine="another"),
    lambda arm: arm["studies"][0]["fresh"][0].update(status="stopped")])
def test_the_check_refuses_an_edited_board(searched, edit):
    board = board_of(searched)
    edit(board["arms"]["ars2_neo_sync"])
    assert check_board(board)


@pytest.mark.parametrize("edit", [
    lambda board: board["terms"].update(alpha=0.2), lambda board: board["terms"].pop("cap"),
    lambda board: board["results"].pop("on_the_way"), lambda board: board.update(arms=[])])
def test_the_check_refuses_edited_terms_and_results(searched, edit):
    board = board_of(searched)
    edit(board)
    problems = check_board(board)
    assert problems and all(len(line) < 200 for line in problems)


def test_a_board_on_other_terms_is_kept_unless_replaced(searched, tmp_path, monkeypatch, capsys):
    clone = tmp_path / "outputs"
    shutil.copytree(searched / "paper", clone / "paper")
    before = board_of(clone)
    monkeypatch.setattr(command, "run_jobs", run_here)
    other = [*OPTIONS, "--outputs", str(clone), "--trials", "1", "--optimizers", "adamw"]
    assert command.main(other) == 2
    assert "trials 2 -> 1" in capsys.readouterr().err and board_of(clone) == before
    fewer = [*OPTIONS, "--outputs", str(clone), "--studies", "1", "--replace"]
    assert command.main(fewer) == 2
    assert "announced 2 studies" in capsys.readouterr().err and board_of(clone) == before
    kept = clone / "paper" / "chains" / "grokking" / "adamw-1"
    plan = chains.Chain(arm_named("adamw", 400), 1, before["terms"], kept).plan
    write_json(kept / "chain.json", plan, depth=1)
    write_json(kept / "study.json", before["arms"]["adamw"]["studies"][0], depth=1)
    (clone / "paper" / "arena" / "grokking.json").rename(tmp_path / "board.json")
    assert command.main(fewer) == 2
    assert "adamw study 1 was run as one of 2 studies" in capsys.readouterr().err
    (tmp_path / "board.json").rename(clone / "paper" / "arena" / "grokking.json")
    assert command.main([*other, "--replace"]) == 0
    assert set(board_of(clone)["arms"]) == {"adamw"} and check_board(board_of(clone)) == []


def test_unfinished_arms_are_not_published(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "run_jobs", lambda jobs, _, report: [report(j, 1) for j in jobs])
    assert command.main([*OPTIONS, "--outputs", str(tmp_path / "outputs")]) == 1
    assert "not published: adamw, adamw_again, ars2_neo_sync" in capsys.readouterr().err
    assert not (tmp_path / "outputs" / "paper").exists()


def test_parallel_commands_keep_each_others_arms(searched, tmp_path, monkeypatch, capsys):
    """While the A/A arm is searched, another command adds an arm to the board."""
    clone = tmp_path / "outputs"
    shutil.copytree(searched / "paper", clone / "paper")
    path, whole = clone / "paper" / "arena" / "grokking.json", board_of(searched)
    both = {name: arm for name, arm in whole["arms"].items() if name != "adamw_again"}
    path.write_text(json.dumps({**whole, "arms": {"adamw": both["adamw"]}}))
    studies = iter(whole["arms"]["adamw_again"]["studies"])

    def search_meanwhile(jobs, _launcher, report):
        path.write_text(json.dumps({**whole, "arms": both}))
        for job in jobs:
            job.work()
            (job.folder / "study.json").write_text(json.dumps(next(studies)))
            report(job, 0)

    monkeypatch.setattr(command, "run_jobs", search_meanwhile)
    words = [*OPTIONS[:2], "adamw_again", *OPTIONS[3:], "--outputs", str(clone)]
    assert command.main(words) == 0  # the noise arm alone is no challenge
    assert board_of(clone) == whole
    timed = [*OPTIONS[:1], "--pace", "--outputs", str(clone)]
    monkeypatch.setattr(command, "time_winners", lambda board: (
        [arm.update(ms_per_evaluation=7.0, paced=True) for arm in board["arms"].values()],
        path.write_text(json.dumps(whole)), board["arms"].pop("ars2_neo_sync")))
    assert command.main(timed) == 0
    assert board_of(clone)["arms"].keys() == whole["arms"].keys()
    assert board_of(clone)["arms"]["adamw"]["ms_per_evaluation"] == 7
    assert command.main([*words, "--minutes", "3"]) == 2
    assert "--minutes limits a challenge" in capsys.readouterr().err
    assert command.main([*OPTIONS[:2], "muon,kfac", *OPTIONS[3:], "--outputs", str(clone)]) == 2
    assert "kfac and adamw are the same" in capsys.readouterr().err  # adamw is on the board


def test_pace_is_time_over_the_gradient_evaluations_of_the_same_steps(searched, monkeypatch):
    monkeypatch.setattr(pace, "interleaved", lambda functions, rounds: {
        name: [[function(), 3.0][1] for _ in range(rounds)] for name, function in
        functions.items()})
    board = board_of(searched)
    pace.time_winners(board, rounds=2)
    found = {name: arm["ms_per_evaluation"] for name, arm in board["arms"].items()}
    assert found == {"adamw": 150, "adamw_again": 150, "ars2_neo_sync": 75}
    assert all(arm["paced"] for arm in board["arms"].values())


# --- after a board


@pytest.fixture(scope="module")
def followed(searched, tmp_path_factory):
    """Every question asked of the searched board, with as few runs as can be."""
    outputs = tmp_path_factory.mktemp("followed") / "outputs"
    shutil.copytree(searched / "paper", outputs / "paper")
    patch = pytest.MonkeyPatch()
    patch.setattr(follow_up, "run_jobs", probe_here)
    patch.setattr(follow_up, "RATES", [1.0, 10.0])
    for name, seed in (("RATE_SEEDS", 9), ("MOVE_SEEDS", 9), ("KNOWN_SEEDS", 7),
                       ("REPORT_SEEDS", 8)):
        patch.setattr(follow_up, name, range(seed, seed + 1))
    patch.setattr(follow_up, "read_toml", lambda _: {"known": {}})
    try:
        for words in (["--sensitivity"], ["--transfer", "grokking"], ["--best-known"]):
            assert command.main(["grokking", *words, "--outputs", str(outputs)]) == 0
    finally:
        patch.undo()
    return outputs


def test_follow_ups_write_their_files_and_pages(followed):
    folder = followed / "paper" / "follow_up"
    rates = json.loads((folder / "grokking_sensitivity.json").read_text())
    assert set(rates["arms"]) == {"adamw", "ars2_neo_sync"}  # and no noise arm
    low, high = map(float, rates["arms"]["adamw"])
    assert high / low == pytest.approx(10, rel=1e-2)
    assert [run["seed"] for run in rates["arms"]["adamw"][f"{high:.3g}"]] == [9]
    assert "decades within the best" in (folder / "grokking_sensitivity.md").read_text()
    assert (folder / "grokking_sensitivity.png").exists()
    moved = json.loads((folder / "grokking_transfer_from_grokking.json").read_text())
    assert len(moved["arms"]["adamw"]["moved"]) == 1
    known = json.loads((folder / "grokking_best_known.json").read_text())
    (label, runs), = known["arms"]["adamw"].items()
    assert label.startswith("winner of study") and [run["seed"] for run in runs] == [8]
    assert "A setting, not an optimizer" in (folder / "grokking_best_known.md").read_text()
    (folder / "grokking_best_known.md").unlink()
    assert command.main(["--render", "--outputs", str(followed)]) == 0
    assert (folder / "grokking_best_known.md").exists()


@pytest.mark.parametrize("path", sorted(Path("outputs/paper").glob("follow_up/*.json")),
                         ids=lambda path: path.stem)
def test_a_committed_follow_up_is_what_its_json_says(path, tmp_path):
    copy = shutil.copy(path, tmp_path)
    follow_up.write_follow_up(Path(copy), Path("outputs"))
    assert Path(copy).with_suffix(".md").read_text() == path.with_suffix(".md").read_text()


def test_a_basin_is_the_decades_of_the_rate_near_the_best():
    rates = (1e-4, 1e-3, 1e-2, 1e-1)
    assert follow_up.basin(rates, (2.0, 0.0, 0.0, 1.0), 0.5) == pytest.approx(0.25 + 1 + 0.5)
    assert follow_up.basin(rates, (0.0, 0.2, 0.9, 0.0), 0.5) == pytest.approx(1 + 0.3 / 0.7)
    inf = math.inf  # a miss is outside, from the neighbor on
    assert follow_up.basin(rates, (0.2, 0.0, inf, 0.0), 0.5) == pytest.approx(1)
    assert math.isnan(follow_up.basin(rates, (inf,) * 4, 0.5))
    assert math.isnan(follow_up.basin(rates, (0.0,) * 4, math.nan))


def test_the_recommender_is_judged_on_the_task_left_out(tmp_path, capsys):
    """Task c, annealed, is held out; AdamW's loss falls by 10 % per doubling of its budget."""
    def board(regime, **levels):
        terms = {"task": "t", "regime": regime, "cap": 100, "hold": 1, "main_target": 1,
                 "mode": "max" if regime == "race" else "min", "baseline": "adamw", "worst": 9.0,
                 **({"ladder": {"half": 0.5, "double": 2.0}} if regime == "anneal" else {})}
        rows = {name: {"values": [level]} | ({} if name in ("half", "double") else {"rank": [1, 9]})
                for name, level in levels.items()}
        default = {"trials": [{"cost": 80, "grade": -1.1}]}
        return {"terms": terms, "arms": {"adamw": {"studies": [default]}},
                "results": {"arms": rows}}

    def moved(**runs):
        return {"arms": {name: {"moved": [{"status": "completed", "curve": {
            "evaluations": [spent], "metric": [metric]}}]} for name, (spent, metric) in
            runs.items()}}

    log = math.log
    boards = {"a": board("race", adamw=log(50), soap=log(25), sgd=log(100)),
              "b": board("race", adamw=log(50), soap=log(100), sgd=log(40)),
              "c": board("anneal", adamw=1.0, soap=0.95, sgd=1.2, half=1.1, double=0.9)}
    transfers = {("a", "b"): moved(adamw=(60, 1), soap=(90, 1), sgd=(80, 1)),
                 ("b", "a"): moved(adamw=(55, 1), soap=(60, 1), sgd=(90, 1)),
                 ("a", "c"): moved(adamw=(9, math.e**1.05), soap=(9, math.e), sgd=(9, 9.0)),
                 ("b", "c"): moved(adamw=(9, math.e), soap=(9, math.e), sgd=(9, 9.0))}
    rows = {row["task"]: row for row in regrets(boards, transfers)}
    # Mean log scores on a and b: soap from a (log 1/2 + log 9/5) / 2 is the least, < log 1.
    assert rows["c"]["choice"] == {"arm": "soap", "from": "a"}
    # On c: soap tuned is worth sqrt 2 budgets, so AdamW's loss of 1.0 costs sqrt 2 as much.
    costs = {key: math.exp(rows["c"][key]) for key in (
        "regret", "baseline_moved", "baseline_default", "random")}
    root = math.sqrt(2)
    assert costs == pytest.approx({
        "regret": root, "baseline_moved": root, "baseline_default": 2 * root,
        "random": (2 * root * (2 * root) * root * root * (2 * root)) ** (1 / 6)})
    assert rows["b"]["choice"] == {"arm": "soap", "from": "a"}  # only a was moved to b
    assert math.exp(rows["b"]["regret"]) == pytest.approx(90 / 40)
    assert math.exp(rows["b"]["baseline_default"]) == pytest.approx(80 / 40)

    folder = tmp_path / "paper"
    for name, content in boards.items():
        write_json(folder / "arena" / f"{name}.json", content, depth=2)
    assert command.main(["--recommend", "--outputs", str(tmp_path)]) == 2
    assert "there are: a, b, c" in capsys.readouterr().err
    for (source, target), content in transfers.items():
        write_json(folder / "follow_up" / f"{target}_transfer_from_{source}.json", content, depth=2)
    assert command.main(["--recommend", "--outputs", str(tmp_path)]) == 0
    assert "soap, tuned on a" in capsys.readouterr().out
    assert json.loads((folder / "recommend.json").read_text())["rows"] == list(rows.values())
    (folder / "follow_up" / "a_transfer_from_b.json").write_text("{")
    assert command.main(["--recommend", "--outputs", str(tmp_path)]) == 2
    assert "a_transfer_from_b.json is damaged" in capsys.readouterr().err
    shutil.rmtree(folder / "arena")
    assert command.main(["--render", "--outputs", str(tmp_path)]) == 2
    assert "a_transfer_from_b.json is damaged" in capsys.readouterr().err


def test_best_so_far_never_rises_and_misses_count_as_the_cap():
    trials = [trial(0, None), trial(1, 300), trial(2, 350), trial(3, 100)]
    assert best_so_far({"regime": "race", "cap": 400}, trials) == [400, 300, 300, 100]
    graded = [trial(0, None, grade=-2.0), trial(1, None, grade=-3.0), trial(2, None, grade=-1.0)]
    assert best_so_far({"regime": "anneal"}, graded) == pytest.approx(
        [math.e**2, math.e**2, math.e])


def test_a_column_is_printed_where_its_numbers_compare_optimizers():
    """Milliseconds: all arms timed by --pace. MiB: a device whose peak is that of tensors."""
    path = Path("outputs/paper/arena/wikitext2.json")
    board = json.loads(path.read_text(encoding="utf-8"))
    for paced, of in (((), ()), (board["arms"], board["arms"]), ((), list(board["arms"])[1:])):
        for name, arm in board["arms"].items():
            arm["paced"] = name in of
        assert ("ms an evaluation" in table(board)[0]) is bool(paced)
        assert ("wall time, all optimizers" in legend(board)) is bool(paced)
    assert "MiB" not in table(board)[0] and "*MiB*" not in legend(board)
    for arm in board["arms"].values():
        arm["studies"][0]["machine"] = "NVIDIA H100, 1 threads"
    assert "MiB" in table(board)[0] and "*MiB*" in legend(board)


def test_other_targets_mark_bounds_and_orders_that_change():
    def row(reached, low, high, **more):
        return {**base, "reached": [reached, 4], "ratio": 1.5, "low": low, "high": high, **more}

    base = {"cost": 1.0, "reached": [4, 4]}
    early = {"adamw": base, "a": row(4, 0.5, 0.9), "b": row(4, 0.5, 1.1), "c": row(2, 0.5, 0.9)}
    final = {name: row(4, 1.1, 2.0, bound="") for name in "abc"} | {"adamw": base}
    board = {"terms": {"baseline": "adamw", "regime": "race"},
             "results": {"arms": final, "on_the_way": [{"target": 0.5, "arms": early}]}}
    *_, lines, note = page._on_the_way(board)
    assert "| b     | 1 (4 of 4) | 1.5 [0.5, 1.1]     |" in lines
    assert "| c     | 1 (2 of 4) | ≥ 1.5 [0.5, 0.9]   |" in lines
    assert note.endswith("(intervals on both sides of 1): a.")  # c's misses may be its order
    early["adamw"] = {"cost": 1.0, "reached": [3, 4]}
    assert "? 1.5 [0.5, 0.9]" in page._on_the_way(board)[2]


def test_pairs_show_the_adjusted_p_and_the_cheaper_arm_in_the_column():
    pairs = [{"a": "x", "b": "adamw", "p_bh": 0.0123, "ordered": True},
             {"a": "y", "b": "adamw", "p_bh": 0.3, "ordered": False},
             {"a": "y", "b": "x", "p_bh": 0.04, "ordered": True}]
    costs = {"adamw": {"cost": 3.0}, "x": {"cost": 1.0}, "y": {"cost": 2.0}, "half": {"cost": 9.0}}
    assert pairs_table({"results": {"pairs": pairs, "arms": costs}}) == [
        ("", "x", "y"), ("y", "**0.04**", ""), ("adamw", "**0.012**", "0.3")]


def test_winners_at_one_end_of_an_axis_are_named():
    def study(lr):
        return {"winner": 0, "trials": [{"params": {"lr": lr}}]}

    arm = {"axes": {"lr": [1e-4, 1e-2, "log"], "memory": {"choices": ["fast"], "nearest": 0}},
           "studies": [study(9e-3), study(8e-3), study(1e-3), study(1.1e-4)]}
    assert edges(arm) == ["lr"]
    arm["studies"][0] = study(5e-3)
    assert edges(arm) == []


def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    for words, message in (
            (["grokking", "--set", "model.d_modle=64"], "d_modle"), (["chess"], "no task 'chess'"),
            (["grokking", "--optimizers", "adamx"], "adamx"),
            (["grokking", "--pace"], "search first")):
        assert command.main([*words, "--outputs", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err
    for words in ([], *(["grokking", "--minutes", text] for text in ("nan", "-1", "0", "inf"))):
        with pytest.raises(SystemExit):
            command.main(words)
    def no_data(*_):
        raise DataError("data is missing")

    with monkeypatch.context() as patch:
        patch.setattr(command, "terms_of", no_data)
        capsys.readouterr()
        assert command.main(["grokking", "--outputs", str(tmp_path)]) == 2
        assert capsys.readouterr().err == "error: data is missing\n"
    assert not list(tmp_path.iterdir())
    path = tmp_path / "paper" / "arena" / "grokking.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert command.main(["grokking", "--outputs", str(tmp_path)]) == 2
    assert "damaged" in capsys.readouterr().err


def test_optuna_is_imported_where_it_is_used():
    """The image of a rented card has none."""
    code = ("import sys; sys.modules['optuna'] = None; import exp.tune.chain;"
            " from exp.tune.arms import arm_named; arm_named('adamw', 10)")
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ, cwd=Path.cwd())


# --- the learning-rate finder


def test_the_ramp_on_a_parabola_climbs_from_the_edge_on():
    """f(w) = h w^2 / 2: a step of SGD raises the loss if and only if lr > 2 / h."""
    h, w = 4.0, 1.0

    def step(lr):
        nonlocal w
        loss = h * w**2 / 2
        w -= lr * h * w
        return loss

    curve = find_lr.ramp(step, 1e-3, 100.0, 60)
    assert curve.rates[1] / curve.rates[0] == pytest.approx(1e5 ** (1 / 59))
    grew = [after > before for before, after in zip(curve.losses, curve.losses[1:], strict=False)]
    assert grew == [rate > 2 / h for rate in curve.rates[:-1]] and any(grew)
    assert len(curve.rates) < 60 and max(curve.smoothed) <= 4 * min(curve.smoothed)
    one, two = curve.losses[:2]
    assert curve.smoothed[:2] == pytest.approx(
        [one, (0.98 * 0.02 * one + 0.02 * two) / (1 - 0.98**2)])


def test_the_rates_that_the_finder_suggests_by_hand():
    curve = find_lr.Curve([1.0, 2.0, 4.0, 8.0, 16.0], [], [5.0, 4.5, 2.0, 1.0, 3.0])
    assert (curve.steepest, curve.tenth_of_lowest) == (4.0, 0.8)  # 4.5 - 1.0 is the largest fall
    flat = find_lr.ramp(lambda lr: 1.0 if lr < 5 else math.inf, 1.0, 10.0, 2)
    assert flat.rates == [1.0] and math.isnan(flat.steepest)


def test_the_finder_takes_a_config_and_refuses_a_wrong_one(tiny_data, tmp_path, capsys):
    words = ["--config", str(TASK.config), "--output", str(tmp_path / "lr.png"),
             *(word for override in TINY for word in ("--set", override))]
    assert find_lr.main([*words, "--low", "1e-4", "--high", "1", "--steps", "5"]) == 0
    assert (tmp_path / "lr.png").stat().st_size > 1000
    assert "steepest" in capsys.readouterr().out
    (tmp_path / "lr.png").unlink()
    for wrong in (["--low", "2", "--high", "1"], ["--set", "optimizer.lr=0.0"],
                  ["--config", "config/none.toml"], ["--set", "optimizer.nosuch=1"]):
        assert find_lr.main([*words, *wrong]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "lr.png").exists()
