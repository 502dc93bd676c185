"""exp.tune: search spaces, equal budgets, scores by hand, and a study that survives its workers."""

import contextlib
import io
import json
import math
import re
import shutil
import subprocess
import threading
import tomllib
import warnings
import zlib
from pathlib import Path

import optuna
import pytest
from conftest import TINY
from optuna.trial import TrialState

from exp.harness.config import complete
from exp.harness.errors import ConfigError
from exp.harness.run import Interrupted
from exp.harness.task import task_named
from exp.jobs import launch
from exp.report.statistics import Estimate
from exp.report.tables import between_marks
from exp.tune import __main__ as command
from exp.tune import board as leaderboard
from exp.tune import pace, page, report, score, study
from exp.tune import storage as storages
from exp.tune.space import (
    Choice,
    Range,
    all_arms,
    arm_settings,
    goal_of,
    points,
    search_space,
    with_point,
)

PAPER = Path("outputs/paper")
EASY = goal_of("grokking", target=0.05, cap=40, overrides=TINY["grokking"])
SEED = 7


@pytest.fixture
def storage(tmp_path):
    return storages.open_storage(f"sqlite:///{tmp_path / 'tune.db'}")


# --- search spaces


@pytest.mark.parametrize("arm", all_arms())
def test_every_arm_has_a_space_whose_points_are_valid_settings(arm):
    space = search_space(arm)
    assert space
    for task in ("grokking", "cifar", "wikitext2"):
        for point in points(space, 3, seed=1):
            settings = study.trial_settings(goal_of(task), arm, point, seed=7, limit=100)
            assert settings["experiment"]["max_evaluations"] == 100
            assert settings == complete(settings, task_named(task))


def test_what_an_arm_states_is_not_searched():
    assert {"k", "adaptive_sync"} <= set(search_space("ars2_neo"))
    assert not {"k", "adaptive_sync"} & set(search_space("ars2_neo_sync"))
    assert "sam.rho" in search_space("sam_adamw")
    assert with_point(arm_settings("sam_adamw"), {"lr": 0.1, "sam.rho": 0.2}) == {
        "name": "adamw", "lr": 0.1, "sam": {"rho": 0.2}}
    assert arm_settings("sam_adamw")["sam"] == {}  # the arm itself is untouched


@pytest.mark.parametrize("name", ["adamx", "sam", "rprop"])
def test_an_arm_that_cannot_be_searched_is_a_clear_error(name):
    with pytest.raises(ConfigError, match=name):
        search_space(name)


def test_ranges_and_choices_by_hand():
    assert Range(1e-4, 1e-2, log=True).at(0.5) == 1e-3
    for axis in (Range(1e-4, 1e-2, log=True), Range(0.2, 0.8, log=False)):
        assert axis.share(axis.at(0.3)) == pytest.approx(0.3, abs=1e-4)
    assert Range(0.0, 1.0, log=False).at(0.25) == 0.25
    assert [Choice(("a", "b", "c")).at(share) for share in (0, 0.34, 0.999, 1.0)] == list("abcc")


def test_more_points_keep_the_first_and_fill_the_space_evenly():
    space = search_space("muon")
    assert points(space, 40, 3)[:10] == points(space, 10, 3)
    assert points(space, 10, 3) != points(space, 10, 4)
    lows = [point["lr"] < 1e-2 for point in points(space, 32, 3)]  # the middle, on a log scale
    assert 15 <= sum(lows) <= 17


# --- studies


def test_a_study_is_prepared_once_grows_and_keeps_its_terms(storage):
    first = study.prepare(EASY, "adamw", 1, 3, SEED, storage)
    assert study.waiting(first) == 4  # three points and the defaults
    assert study.waiting(study.prepare(EASY, "adamw", 1, 3, SEED, storage)) == 4
    assert study.waiting(study.prepare(EASY, "adamw", 1, 5, SEED, storage)) == 6
    with pytest.raises(ConfigError, match=r"other terms \(target, cap, set\)"):
        study.prepare(goal_of("grokking", target=0.5), "adamw", 1, 5, SEED, storage)
    with pytest.raises(ConfigError, match="more than 3 trials"):
        study.prepare(EASY, "adamw", 1, 3, SEED, storage)


def test_a_new_storage_goes_on_from_published_trials(storage, tmp_path):
    """What a clone without the first machine's storage does."""
    made = study.prepare(EASY, "adamw", 1, 2, SEED, storage)
    tried = {0: 24.0, 1: math.inf, study.DEFAULTS: 32.0}
    for _ in tried:
        with storages.quiet():
            trial = made.ask()
        value = tried[trial.user_attrs[study.POINT]]
        reached = {"gradient_evaluations": value} if math.isfinite(value) else {}
        trial.set_user_attr("result", {"limit": 40, "status": "completed", **reached})
        made.tell(trial, value)
    published = json.loads(json.dumps(score.study_record(EASY, "adamw", made)))
    assert [trial["value"] for trial in published["trials"]] == [24.0, None]

    def elsewhere(name, goal=EASY, budget=2):
        new = storages.open_storage(f"sqlite:///{tmp_path / name}.db")
        return study.prepare(goal, "adamw", 1, budget, SEED, new, published=published)

    same = elsewhere("same")
    assert study.waiting(same) == 0 and study.allowance(same, 100) == 48
    assert score.study_record(EASY, "adamw", same) == published
    more = elsewhere("more", budget=3)
    (waits,) = more.get_trials(states=(TrialState.WAITING,))
    assert waits.user_attrs[study.POINT] == 2
    assert waits.user_attrs["settings"] == points(
        search_space("adamw"), 3, SEED)[2]
    # Trials on other terms, or more of them than the others get, are not taken over.
    assert study.waiting(elsewhere("terms", goal_of("grokking", 0.06, 40, TINY["grokking"]))) == 3
    assert study.waiting(elsewhere("fewer", budget=1)) == 2
    # Nor are they added to a study that has its own.
    assert len(study.prepare(EASY, "adamw", 1, 2, SEED, storage, published=published).trials) == 3


def test_what_an_arm_fixes_is_among_the_terms(storage, monkeypatch):
    study.prepare(EASY, "ars2_neo_lazy", 1, 1, SEED, storage)
    other = {**arm_settings("ars2_neo_lazy"), "k": 7}
    monkeypatch.setattr(study, "arm_settings", lambda arm: other)
    with pytest.raises(ConfigError, match=r"other terms \(arm\)"):
        study.prepare(EASY, "ars2_neo_lazy", 1, 1, SEED, storage)


def test_arms_share_the_points_of_a_study_and_tasks_do_not(storage):
    def shares(goal, arm, number):
        seeds = leaderboard.agreed_terms(
            goal, {"budget": 3, "studies": 2, "fresh_seeds": 1}, [arm], None)["point_seeds"]
        trials = study.prepare(goal, arm, number, 3, seeds[number - 1], storage).get_trials()
        axis = search_space(arm)["lr"]
        rates = [t.user_attrs["settings"]["lr"] for t in trials if t.user_attrs["settings"]]
        return [math.log(lr / axis.low) / math.log(axis.high / axis.low) for lr in rates]

    first = shares(EASY, "adamw", 1)
    assert shares(EASY, "muon", 1) == pytest.approx(first, abs=1e-3)
    for other in (shares(EASY, "adamw", 2), shares(goal_of("cifar"), "adamw", 1)):
        assert all(abs(a - b) > 0.01 for a, b in zip(first, other, strict=True))


def test_a_schedule_that_ends_needs_its_length():
    goal = goal_of("grokking", overrides=['schedule.name="cosine"'])
    with pytest.raises(ConfigError, match="period_epochs"):
        study.trial_settings(goal, "adamw", {"lr": 0.1}, seed=1, limit=100)
    goal = goal_of("grokking", overrides=['schedule.name="cosine"', "schedule.period_epochs=9"])
    settings = study.trial_settings(goal, "adamw", {"lr": 0.1}, seed=1, limit=100)
    assert settings["schedule"]["period_epochs"] == 9


def test_what_gets_there_beyond_the_limit_in_its_last_epoch_is_a_miss(storage, monkeypatch):
    made = study.prepare(EASY, "adamw", 1, 2, SEED, storage)
    for value in (40.0, 42.0):
        with storages.quiet():
            trial = made.ask()
        trial.set_user_attr("result", {"limit": 40, "gradient_evaluations": value})
        made.tell(trial, value)
    trials = score.study_record(EASY, "adamw", made)["trials"]
    assert [trial["value"] for trial in trials] == [40.0, None]
    assert study.unfinished(made, 2) == 0 and study.unfinished(made, 3) == 1
    again = optuna.trial.create_trial(value=8.0, user_attrs={  # two hosts prepared it at once
        study.POINT: 0, "settings": {}, "result": {"limit": 40, "gradient_evaluations": 8.0}})
    made.add_trial(again)
    assert score.study_record(EASY, "adamw", made)["trials"] == trials
    assert study.unfinished(made, 2) == 0
    runs = [{"status": status, "curve": {"gradient_evaluations": [20, last],
                                         "eval_accuracy": [0.01, best]}}
            for status, last, best in (("completed", 40, 0.1), ("completed", 42, 0.1),
                                       ("completed", 40, 0.04), ("diverged", 40, None))]
    runs.append({"status": "diverged", "curve": {}})
    monkeypatch.setattr(score, "fresh_records", lambda *_: dict(enumerate(runs)))
    assert [run["reached"] for run in command.fresh_runs(EASY, [])] == [True, *4 * [False]]


def test_trials_run_stop_at_the_target_and_are_given_up_only_when_hopeless(storage, tmp_path,
                                                                           capsys):
    made = study.prepare(EASY, "adamw", 1, 4, SEED, storage)
    study.work(EASY, "adamw", 1, storage, tmp_path)
    record = score.study_record(EASY, "adamw", made)
    assert len(record["trials"]) == 4 and record["defaults"] is not None
    best = math.inf
    for trial in record["trials"] + [record["defaults"]]:
        assert trial["limit"] == min(EASY.cap, 2 * best)
        if trial["value"] is None:
            assert trial["best"] < EASY.target
        else:
            assert trial["best"] >= EASY.target
            assert trial["value"] == trial["gradient_evaluations"] == 2 * trial["epoch"]
            best = min(best, trial["value"])
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == [
        f"grokking/adamw/1 trial {number}" for number in range(5)]
    folders = list((tmp_path / "grokking" / "adamw" / "study1").iterdir())
    assert len(folders) == 5
    assert all("test = false" in (folder / "config.toml").read_text() for folder in folders)
    assert not list(tmp_path.rglob("*.pt"))
    assert study.waiting(made) == 0


def test_an_interrupted_trial_waits_again_and_a_spare_one_is_not_scored(storage, tmp_path,
                                                                       monkeypatch):
    made = study.prepare(EASY, "adamw", 1, 1, SEED, storage)

    def interrupted(*_):
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(study, "run_trial", interrupted)
        study.work(EASY, "adamw", 1, storage, tmp_path)
    assert study.waiting(made) == 2
    study.work(EASY, "adamw", 1, storage, tmp_path)
    assert len(score.study_record(EASY, "adamw", made)["trials"]) == 1
    made.optimize(lambda trial: 1.0, n_trials=1)  # one that was never asked for
    with pytest.raises(KeyError):
        score.study_record(EASY, "adamw", made)


@pytest.mark.parametrize("scheme", ["sqlite:///{}/tune.db", "{}/tune.journal"])
def test_a_dead_workers_trial_is_tried_again(scheme, tmp_path, monkeypatch):
    monkeypatch.setattr(storages, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(storages, "GRACE_SECONDS", 1)
    url = scheme.format(tmp_path)
    storage = storages.open_storage(url)
    made = study.prepare(EASY, "adamw", 1, 1, SEED, storage)
    with pytest.warns(UserWarning, match="Heartbeat"):
        trial = made.ask()  # taken by a worker ...
    storage.record_heartbeat(trial._trial_id)  # ... that lived once
    assert (study.waiting(made), study.running(made)) == (1, 1)
    import time

    assert (study.waiting(made), study.running(made)) == (1, 1)
    made = study.prepare(EASY, "adamw", 1, 1, SEED, storages.open_storage(url))
    assert (study.waiting(made), study.running(made)) == (1, 1)  # it may be alive
    time.sleep(2.5)
    made = study.prepare(EASY, "adamw", 1, 1, SEED, storages.open_storage(url))
    assert (study.waiting(made), study.running(made)) == (2, 0)
    states = [t.state for t in made.get_trials()]
    assert states.count(TrialState.FAIL) == 1


@pytest.mark.parametrize("scheme", ["sqlite:///{}/tune.db", "{}/tune.journal"])
def test_workers_never_take_the_same_trial(scheme, tmp_path):
    url, count, workers = scheme.format(tmp_path), 40, 4
    made = optuna.create_study(study_name="s", storage=storages.open_storage(url))
    for point in range(count):
        made.enqueue_trial({}, user_attrs={study.POINT: point})
    taken, together = [], threading.Barrier(workers)

    def work():
        mine = optuna.load_study(study_name="s", storage=storages.open_storage(url))
        for _ in range(count // workers):
            together.wait()
            taken.append(mine.ask().number)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the heartbeat announces itself
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(taken) == list(range(count))


def test_a_storage_that_cannot_be_opened_is_one_clear_error():
    with pytest.raises(ConfigError, match="cannot open the storage"):
        storages.open_storage("sqlite:////no/such/folder/tune.db")


# --- scores


def record(*values, defaults=None):
    def trial(value):
        return {"settings": {"lr": 0.1}, "value": value, "gradient_evaluations": value,
                "epoch": value and value / 8, "limit": 250}

    return {"terms": "", "text": "", "trials": [trial(value) for value in values],
            "defaults": None if defaults is None else trial(defaults)}


def test_scores_by_hand():
    records = [record(100, 80, None, 170), record(60, None), record(None, None)]
    assert score.tuned_score(records) == 80  # 80, 60, infinite
    assert score.tuned_score(records[2:]) == math.inf
    assert score.tuned_score(records, "epoch") == 10
    # Near the best: 100 and 80 (not 170 > 160) of 4, 60 of 2, none of 2.
    assert score.share_near_best(records) == 3 / 8
    assert score.representative(records) == 2  # of 60 and 80 the lower middle is 60
    assert score.representative(records[2:]) is None
    with_defaults = [record(100, defaults=300), record(50, defaults=None)]
    assert score.default_over_best(with_defaults) == (3.0, False)
    missed = record(50)
    missed["defaults"] = {"value": None, "limit": 100}  # given up at twice the best
    assert score.default_over_best([missed]) == (2.0, True)
    assert score.default_over_best([missed, record(100, defaults=300)]) == (2.0, True)
    assert report.bounded((2.0, True)) == "> 2" and report.bounded((2.0, False)) == "2"
    found = record(None, defaults=80)  # by the defaults alone
    assert score.default_over_best([found, missed, found]) == (0.0, False)
    assert score.default_over_best([found, missed, missed]) == (2.0, True)
    assert report.bounded((0.0, False)) == "< 1"
    assert math.isnan(score.default_over_best([record(None)])[0])


def test_a_winner_at_the_end_of_a_range_is_named():
    space = {"lr": [1e-4, 1e-2, "log"], "rho": [0.0, 1.0, "linear"]}
    trials = [{"settings": {"lr": lr, "rho": rho}, "value": value}
              for lr, rho, value in ((2e-3, 0.01, 90), (7e-3, 0.5, 80), (1e-4, 0.0, None))]
    study_ = {"space": space, "trials": trials}
    assert score.at_edges(study_) == {"lr": 7e-3}  # 0.92 of the way
    assert score.at_edges({**study_, "trials": trials[:1]}) == {"rho": 0.01}
    assert score.at_edges({**study_, "trials": trials[2:]}) == {}
    line = report.ranges_line({"arms": {"a": {"studies": [study_]}, "b": {"studies": [record(3)]}}})
    assert line.endswith("beyond: a (lr 0.007 of 0.0001 to 0.01).")
    assert report.ranges_line({"arms": {}}).endswith("none.")


def test_arms_that_would_search_elsewhere_today_are_named():
    now = score.ranges("adamw")
    then = {**now, "lr": [1e-5, 1e-2, "log"]}
    task = {"terms": {"task": "grokking"}, "arms": {
        "adamw": {"studies": [{**record(None), "space": then}]},
        "muon": {"studies": [{**record(None), "space": score.ranges("muon")}]},
        "lion": {"studies": [record(None)]}, "gone": {"studies": [record(None)]}}}
    assert score.outdated(task) == ["adamw"]
    assert "today's: adamw; `python -m exp.tune grokking --optimizers adamw` renews" in (
        report.ranges_line(task))


def test_the_page_says_how_little_seconds_compare():
    def runs(study, *seconds):
        return [{"study": study, "curve": {"gradient_evaluations": [8, 100], "seconds": [1, taken]}}
                for taken in seconds]

    arms = {"adamw": {"fresh": [*runs(1, 10, 20), *runs(2, 90, 90)]},  # other settings, other pace
            "soap": {"fresh": runs(1, 30, 90)}, "muon": {"fresh": []}}
    for entry in arms.values():
        entry["studies"] = []
    task = {"terms": {"task": "grokking"}, "arms": arms}
    line = report.pace_line(task)
    assert "took up to 3.0 times as long" in line and "`python -m exp.tune grokking --pace`" in line
    assert report.pace_line({"arms": {"muon": arms["muon"]}}) == ""


def test_seconds_are_made_from_winners_timed_side_by_side_where_all_were():
    def study_(ms=None, found=True):
        timed = {} if ms is None else {"pace": {"ms": ms}}
        return {**record(80 if found else None), "text": "x" * found, **timed}

    def entry(*studies):
        fresh = [{"study": number, "reached": True, "epochs": cost / 8,
                  "curve": {"gradient_evaluations": [8, cost], "seconds": [1, cost]}}
                 for number, made in enumerate(studies, 1) if made["text"]
                 for cost in (80, 96, 160)]
        return {"studies": list(studies), "fresh": fresh, "config": "c" * bool(fresh)}

    def rows(**arms):
        task = {"terms": {"task": "grokking", "cap": 400, "fresh_seeds": 3}, "arms": arms,
                "pace": {"device": "CPU: x", "threads": 3, "torch": "2.15"}}
        found = {row["arm"]: row for row in report.rows_of(task)}
        return {arm: (row["seconds"].value, report.took(row["paces"])) for arm, row in
                found.items()}, report.pace_line(task)

    sgd, slow = entry(study_(found=False)), study_(4.0)
    timed, line = rows(adamw=entry(study_(2.0), slow), soap=entry(slow), sgd=sgd)
    # 160, 192, 320 and 320, 384, 640 milliseconds
    assert timed["adamw"] == (0.32, "2 to 4") and timed["soap"] == (0.384, "4")
    assert timed["sgd"] == (math.inf, "")
    assert "timed in turn in one process" in line and "CPU: x, 3 thread(s), torch 2.15" in line
    timed, line = rows(adamw=entry(study_(2.0), study_()), soap=entry(slow), sgd=sgd)
    assert timed["soap"] == (96, "")  # a winner was not timed beside it: its own clock
    assert "as long in one run as in another" in line


def test_a_study_without_a_winner_counts_as_misses_of_every_fresh_seed():
    def runs(study, *values):
        return [{"study": study, "reached": value is not None, "epochs": 1 if value is None else
                 value / 8, "curve": {"gradient_evaluations": [8, value or 400], "seconds": [1, 2]}}
                for value in values]

    def arm(studies, fresh):
        return {"studies": studies, "fresh": fresh, "config": ""}

    task = {"terms": {"cap": 400, "fresh_seeds": 2}, "arms": {
        "adamw": arm([record(200), record(None)], runs(1, 160, 240)),
        "lucky": arm([record(80), record(None), record(None)], runs(1, 80, 88)),
        "sure": arm([record(120), record(120)], runs(1, 120, 128) + runs(2, 96, None)),
        "once": arm([record(40), record(40)], runs(1, None, None) + runs(2, None, 48)),
        "never": arm([record(None), record(None)], []),
        "waiting": arm([record(40), record(None)], [])}}
    assert score.fresh_costs(task, "adamw") == ([160, 240, None, None], [160, 240, 240, 240])
    assert score.fresh_costs(task, "adamw", "epochs")[0] == [20, 30, None, None]
    assert score.fresh_costs(task, "sure") == ([120, 128, 96, None], [120, 128, 96, 400])
    assert score.fresh_costs(task, "never") == ([None] * 4, [400] * 4)
    assert score.fresh_costs(task, "waiting") == ([], [])
    page = report.profiles({"a": task, "b": {**task, "arms": {
        name: arm for name, arm in task["arms"].items() if name != "sure"}}})
    assert "| sure" not in page  # it was tuned on one of the tasks
    assert [line.split("|")[2:-1] for line in page.splitlines() if "adamw" in line] == [
        [" 1.00 "] * 2]  # 1 and 1.5: no run was watched for twice the cheapest, 240 of 400
    rows = report.rows_of(task)
    # One lucky study of three does not make an arm the first; what was not run yet is last.
    assert [row["arm"] for row in rows] == ["sure", "adamw", "lucky", "once", "never", "waiting"]
    assert [row["reached"] for row in rows] == [
        "3 of 4", "2 of 4", "2 of 6", "1 of 4", "0 of 4", "0 of 0"]
    assert [row["fresh"] and row["fresh"].value for row in rows] == [
        120, 240, math.inf, math.inf, math.inf, None]
    assert rows[0]["ratio"].value == 2.0
    assert report.evaluations(rows[4]) == "no trial"
    assert report.evaluations(rows[0]).startswith("120 ")


def test_a_fresh_run_that_diverges_early_is_a_miss_to_the_end():
    """Watched only until it diverged, it would leave the field to those that arrive."""
    curve = {"gradient_evaluations": [8, 96], "seconds": [1, 2], "eval_accuracy": [0.1, 0.99]}
    fresh = [{"study": 1, "reached": True, "epochs": 12, "curve": curve}] * 2
    fresh += [{"study": 1, "reached": False, "epochs": 0, "curve": {}},
              {"study": 1, "reached": False, "epochs": 1,
               "curve": {"gradient_evaluations": [8], "seconds": [1]}}] * 2
    terms = {"cap": 400, "fresh_seeds": 6, "metric": "eval_accuracy", "target": 0.99,
             "mode": "max"}
    task = {"terms": terms, "arms": {"a": {"studies": [record(90)], "fresh": fresh, "config": ""}}}
    times, watched = score.fresh_costs(task, "a")
    assert times == [96, 96, None, None, None, None] and watched == [96] * 6
    assert score.fresh_costs(task, "a", "epochs")[1] == [12] * 6
    (row,) = report.rows_of(task)
    assert row["fresh"].value == math.inf
    assert "<polyline" in page._svg(fresh, terms)


def test_the_curves_of_a_perplexity_are_on_a_log_scale_with_their_ends_and_target_named():
    fresh = [{"curve": {"gradient_evaluations": [10, 20], "eval_perplexity": [1000, 10]}}]
    drawn = page._svg(fresh, {"metric": "eval_perplexity", "mode": "min", "target": 100})
    assert 'class="run" points="320.0,0.0 640.0,220.0"' in drawn
    assert 'class="target" points="0.0,110.0 640.0,110.0"' in drawn  # halfway
    named = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
    assert named == ["10", "1000", "100", "perplexity", "0", "20", "gradient evaluations"]


def test_sorting_by_the_ratio_puts_what_never_arrived_last():
    def row(arm, value):
        return {"arm": arm, "ratio": None if value is None else Estimate(value, 1.0, 2.0, 3)}

    rows = [row("never", math.nan), row("adamw", None), row("fast", 2.0), row("slow", 0.5)]
    assert [r["arm"] for r in sorted(rows, key=page._cheaper)] == ["never", "slow", "adamw", "fast"]


def test_performance_profiles_by_hand():
    costs = {"a": {"x": 10.0, "y": 20.0}, "b": {"x": 30.0, "y": math.inf}}
    assert score.performance_profile(costs, "x", 1.0) == 1.0
    assert score.performance_profile(costs, "y", 1.9) == 0.0
    assert score.performance_profile(costs, "y", 2.0) == 0.5


# --- the whole command


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """Two arms tuned from end to end by a real worker process, in a folder of their own."""
    root = tmp_path_factory.mktemp("tune")
    options = ["grokking", "--optimizers", "adamw,ars2_neo_sync", "--budget", "2", "--studies",
               "1", "--fresh-seeds", "2", "--target", "0.05", "--cap", "40", "--workers", "2",
               "--outputs", str(root / "outputs")]
    options += [word for item in TINY["grokking"] for word in ("--set", item)]
    log = io.StringIO()
    with contextlib.redirect_stderr(log):
        assert command.main(options) == 0
    (last,) = [line for line in log.getvalue().splitlines() if "trials taken" in line][-1:]
    assert re.fullmatch(r"(\d+) of \1 trials taken, 0 running", last)
    return root, options


def test_generated_text_replaces_what_is_between_its_marks():
    page = "a\n<!-- made by x -->\nold\n<!-- end -->\nb <!-- made by y -->c<!-- end -->"
    assert between_marks(page, "x", "new") == page.replace("old", "new")
    assert between_marks(page, "z", "new") == page
    assert between_marks("no marks <!-- end -->", "x", "new") == "no marks <!-- end -->"


def test_a_task_that_is_no_longer_tuned_for_and_an_arm_without_trials_are_kept(tmp_path):
    paper = tmp_path / "outputs" / "paper"
    paper.mkdir(parents=True)
    empty = {"studies": [record()], "fresh": [], "config": ""}
    amounts = {"budget": 1, "studies": 1, "fresh_seeds": 2}
    terms = leaderboard.agreed_terms(EASY, amounts, ["adamw"], None)
    old = {"terms": {**terms, "task": "chess"}, "device": "CPU",
           "torch": "2", "commit": "c", "arms": {"adamw": empty}}
    (paper / "leaderboard.json").write_text(json.dumps({"tasks": {"chess": old}}))
    leaderboard.write_leaderboard(EASY, terms, {"adamw": [record(None)]}, {"adamw": []}, paper)
    kept = leaderboard.read_board(paper / "leaderboard.json")
    assert list(kept["tasks"]) == ["grokking", "chess"]
    assert kept["tasks"]["chess"] == old
    assert (paper / "leaderboard_chess.png").exists()


def test_the_leaderboard_is_written_and_nothing_is_run_twice(board, monkeypatch, tmp_path,
                                                             capsys):
    root, options = board
    paper = root / "outputs" / "paper"
    kept = json.loads((paper / "leaderboard.json").read_text())
    arms = kept["tasks"]["grokking"]["arms"]
    assert set(arms) == {"adamw", "ars2_neo_sync"}
    reached = [arm for arm in arms if score.representative(arms[arm]["studies"])]
    assert reached
    for arm in reached:
        assert [run["seed"] for run in arms[arm]["fresh"]] == [101, 102]
        config = tomllib.loads((root / "outputs" / arms[arm]["config"]).read_text())
        assert config["optimizer"]["name"] == arm_settings(arm)["name"]
        best = score.winner(arms[arm]["studies"][0])
        assert config["optimizer"]["lr"] == best["settings"]["lr"]
    page = (paper / "leaderboard.md").read_text()
    assert "| adamw" in page and "Studies x trials: 1 x 2" in page
    assert (paper / "leaderboard_grokking.png").stat().st_size > 5_000

    def forbidden(*_):
        raise AssertionError("what was done is done again")

    monkeypatch.setattr(command, "run_jobs", lambda jobs, launcher: forbidden() if jobs else {})
    monkeypatch.setattr(launch.Local, "start", forbidden)
    assert command.main(options) == 0
    assert (paper / "leaderboard.md").read_text() == page

    # Nor on another machine, which has the results alone; but a winner of other settings is run.
    clone = tmp_path / "outputs"
    shutil.copytree(paper, clone / "paper")
    assert command.main([*options, "--outputs", str(clone)]) == 0
    assert json.loads((clone / "paper" / "leaderboard.json").read_text()) == kept
    assert f"2 of 2 studies are taken from {clone / 'paper'}" in capsys.readouterr().err
    asked = []
    monkeypatch.setattr(command, "run_jobs", lambda jobs, launcher: asked.extend(jobs) or {})
    arm = reached[0]
    first = arms[arm]["studies"][0]
    first["text"] = first["text"].replace("p = 11", "p = 13")
    (clone / "paper" / "leaderboard.json").write_text(json.dumps(kept))
    command.main([*options, "--outputs", str(clone)])
    assert [(job.name, job.seed) for job in asked] == [
        (f"{arm}-winner1 seed {seed}", seed) for seed in (101, 102)]


def test_pace_times_the_winners_and_is_theirs_as_long_as_they_stand(board, tmp_path, capsys):
    root, options = board
    assert command.main(["grokking", "--pace", "--outputs", str(tmp_path / "empty")]) == 2
    assert "no winner of grokking yet" in capsys.readouterr().err
    clone = tmp_path / "outputs"
    shutil.copytree(root / "outputs" / "paper", clone / "paper")
    assert command.main(["grokking", "--pace", "--outputs", str(clone)]) == 0

    def paces():
        task = leaderboard.read_board(clone / "paper" / "leaderboard.json")["tasks"]["grokking"]
        return {arm: study["pace"] for arm, entry in task["arms"].items()
                for study in entry["studies"] if "pace" in study}

    found = paces()
    assert found and all(0 < took["ms_low"] <= took["ms"] <= took["ms_high"] < 1e4
                         for took in found.values())
    assert "timed in turn in one process" in (clone / "paper" / "leaderboard.md").read_text()
    assert command.main([*options, "--outputs", str(clone)]) == 0  # publishes the same anew
    assert paces() == found
    path = clone / "paper" / "leaderboard.json"  # as if adamw's winner had been another
    path.write_text(path.read_text().replace("the winner of a search", "the old winner", 1))
    assert command.main([*options, "--outputs", str(clone)]) == 0
    assert paces().keys() == found.keys() - {"adamw"}


def test_a_pace_is_time_over_the_gradient_evaluations_of_the_same_steps(board, monkeypatch):
    root, _ = board
    task = leaderboard.read_board(root / "outputs/paper/leaderboard.json")["tasks"]["grokking"]
    texts = {arm: score.shown_text(entry["studies"]) for arm, entry in task["arms"].items()}
    monkeypatch.setattr(pace, "interleaved", lambda functions, rounds: {
        name: [[function(), 3.0][1] for _ in range(rounds)] for name, function in
        functions.items()})
    per_step = {"adamw": 1, "ars2_neo_sync": 2}
    found = [arm for arm, text in texts.items() if text]
    assert pace.measure("grokking", [texts[arm] for arm in found], 2) == [
        dict.fromkeys(("ms", "ms_low", "ms_high"), 3e3 / 20 / per_step[arm]) for arm in found] != []


def test_a_search_that_would_drop_arms_of_the_board_is_refused(board, capsys):
    root, options = board
    before = (root / "outputs" / "paper" / "leaderboard.json").read_bytes()
    one = [*options, "--optimizers", "muon"]
    assert command.main([*one, "--budget", "3"]) == 2
    said = capsys.readouterr().err
    assert "budget 2 -> 3" in said and "would lose adamw, ars2_neo_sync" in said
    assert (root / "outputs" / "paper" / "leaderboard.json").read_bytes() == before
    # Without a word of how much, an arm more gets what the others had.
    standing = json.loads(before)["tasks"]["grokking"]
    goal = goal_of("grokking", 0.05, 40, TINY["grokking"])
    nothing = dict.fromkeys(leaderboard.AMOUNTS)
    assert leaderboard.agreed_terms(goal, nothing, ["muon"], standing) == standing["terms"]
    more = {**nothing, "budget": 3}
    for arms, replace in ((list(standing["arms"]), False), (["muon"], True)):
        terms = leaderboard.agreed_terms(goal, more, arms, standing, replace)
        assert terms == {**standing["terms"], "budget": 3}
    # What is added is tried at the points that the others were tried at.
    standing["terms"]["point_seeds"] = [5]
    longer = leaderboard.agreed_terms(goal, {**nothing, "studies": 2}, standing["arms"], standing)
    assert longer["point_seeds"] == [5, zlib.crc32(b"grokking/2")]


def test_unfinished_trials_are_not_published(tmp_path, monkeypatch, capsys):
    """Another host runs the last one, or the worker that had it is dead."""
    outputs = tmp_path / "outputs"
    (outputs / "tune").mkdir(parents=True)
    url = f"sqlite:///{outputs / 'tune' / 'grokking.db'}"
    made = study.prepare(EASY, "adamw", 1, 2, SEED, storages.open_storage(url))
    with storages.quiet():
        made.ask()
    monkeypatch.setattr(command, "_search", lambda *_: False)
    options = ["grokking", "--optimizers", "adamw", "--budget", "2", "--studies", "1", "--target",
               "0.05", "--cap", "40", "--outputs", str(outputs)]
    options += [word for item in TINY["grokking"] for word in ("--set", item)]
    assert command.main(options) == 1
    assert "2 trials are not finished, of grokking/adamw/1" in capsys.readouterr().err
    assert not (outputs / "paper").exists()


def test_a_wrong_task_optimizer_override_or_board_is_refused(board, tmp_path, capsys):
    wrong = ["--set", "model.d_modle=64", "--outputs", str(tmp_path)]
    assert command.main(["grokking", *wrong]) == 2
    assert "d_modle" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert command.main(["chess"]) == 2
    assert "no task 'chess'" in capsys.readouterr().err
    assert command.main(["grokking", "--optimizers", "adamx", "--outputs", str(tmp_path)]) == 2
    assert not list(tmp_path.iterdir())
    broken = tmp_path / "leaderboard.json"
    broken.write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        leaderboard.read_board(broken)


BROWSER = next(filter(None, map(shutil.which, (
    "chromium", "chromium-browser", "google-chrome", "chrome"))), None)
CLICKS = """<script>
addEventListener("load", () => {
  document.querySelectorAll("th")[0].click(); document.querySelectorAll("th")[0].click();
  document.querySelector(".row").click();
  document.title = [...document.querySelectorAll(".row td:first-child")].map(c => c.textContent)
    .join(",") + ";" + document.querySelectorAll(".more:not([hidden])").length;
});
</script>"""


def test_the_html_page_is_one_file_with_every_config(board):
    root, _ = board
    page = (root / "outputs" / "paper" / "leaderboard.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert page.count('class="row"') == 2
    assert "stop_at = 0.05" in page and "<polyline" in page


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_the_html_page_sorts_and_unfolds_in_a_browser(board, tmp_path):
    root, _ = board
    page = tmp_path / "page.html"
    source = (root / "outputs" / "paper" / "leaderboard.html").read_text()
    page.write_text(source.replace("</body>", CLICKS + "</body>"))
    dom = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--dump-dom", page.as_uri()],
                         capture_output=True, text=True, timeout=60).stdout
    assert "<title>ars2_neo_sync,adamw;1</title>" in dom


def test_the_committed_leaderboard_is_what_its_json_says():
    kept = leaderboard.read_board(PAPER / "leaderboard.json")
    assert (PAPER / "leaderboard.md").read_text(encoding="utf-8") == report.render(kept)
    assert (PAPER / "leaderboard.html").read_text(encoding="utf-8") == leaderboard.render_html(kept)
    readme = leaderboard.README.read_text(encoding="utf-8")
    assert "<!-- made by exp.tune -->\n" in readme
    assert leaderboard.with_headline(readme, kept) == readme
    for task in kept["tasks"].values():
        for entry in task["arms"].values():
            if entry["config"]:
                shown = entry["studies"][score.representative(entry["studies"]) - 1]
                assert Path(entry["config"]).read_text(encoding="utf-8") == shown["text"]


optuna.logging.set_verbosity(optuna.logging.ERROR)
