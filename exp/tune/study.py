"""Studies on Optuna: quasi-random trials of one arm, run by any number of workers on any hosts.

A trial's value is the gradient evaluations it took to the target, infinite for a miss. A trial is
given up when it has taken HOPELESS times as many as the best of its study: it can then neither
win nor count as near the best, so that the rule changes no score and favours no optimizer.
"""

import contextlib
import hashlib
import inspect
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from exp.harness.config import complete
from exp.harness.device import keep_freed_memory
from exp.harness.errors import ConfigError
from exp.harness.folder import RunFolder
from exp.harness.run import Diverged, Interrupted
from exp.harness.task import task_named, train_function
from exp.harness.toml import apply_override, read_toml
from exp.tune.space import Goal, arm_settings, points, search_space, with_point
from exp.tune.storage import quiet
from optimizer import optimizer_class

HOPELESS = 2.0
POINT, DEFAULTS, CHECKPOINTS = "point", "defaults", ("latest.pt", "best.pt")


def prepare(goal: Goal, arm: str, number: int, budget: int, seed: int, storage: BaseStorage,
            defaults: bool = True, published: dict | None = None) -> optuna.Study:
    """The study `number` of an arm with `budget` quasi-random trials, and one of the `defaults`
    unless they are none of the arm's own; those that are missing are waiting to be run.

    seed: what its points are drawn from (board.agreed_terms).
    published: what stands of this study among the results (score.study_record); its trials are
    taken over where the storage has none, so that a fresh clone goes on from them.
    In unit coordinates the points of a study are the same for every arm of a task.
    Raises ConfigError if it was begun on other terms or with more trials.
    """
    study = optuna.create_study(study_name=study_name(goal, arm, number), storage=storage,
                                load_if_exists=True, sampler=optuna.samplers.RandomSampler())
    space = search_space(arm)
    terms = {"metric": goal.metric, "target": goal.target, "cap": goal.cap,
             "set": list(goal.overrides), "space": {k: repr(v) for k, v in space.items()},
             "arm": arm_settings(arm), "config": _without_optimizer(read_toml(goal.config))}
    begun = study.user_attrs.get("terms", {})
    changed = [key for key in begun if begun[key] != terms[key]]
    if changed:
        raise ConfigError(f"{study.study_name} was begun on other terms ({', '.join(changed)}): "
                          "give another --storage")
    study.set_user_attr("terms", terms)
    if (published and published["terms"] == digest(terms) and len(published["trials"]) <= budget
            and not study.get_trials(deepcopy=False)):
        _take_over(study, published)
    with quiet():
        optuna.storages.fail_stale_trials(study)  # a dead worker's trials wait again
    there = {trial.user_attrs.get(POINT) for trial in study.get_trials(deepcopy=False)
             if trial.state != TrialState.FAIL}
    if any(isinstance(point, int) and point >= budget for point in there):
        raise ConfigError(f"{study.study_name} was begun with more than {budget} trials, and what "
                          "the others found has shortened these: give its --budget, or another "
                          "--storage")
    for index, point in enumerate(points(space, budget, seed)):
        if index not in there:
            study.enqueue_trial({}, user_attrs={POINT: index, "settings": point})
    if defaults and DEFAULTS not in there and _has_default_rate(arm):
        study.enqueue_trial({}, user_attrs={POINT: DEFAULTS, "settings": {}})
    return study


def digest(terms: dict) -> str:
    """What a study's terms are told apart by: 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(terms, sort_keys=True).encode()).hexdigest()[:12]


def _take_over(study: optuna.Study, published: dict) -> None:
    """Put the trials of a published study into one without any."""
    tried = dict(enumerate(published["trials"]))
    if published["defaults"]:
        tried[DEFAULTS] = published["defaults"]
    for point, trial in tried.items():
        result = {key: value for key, value in trial.items() if key not in ("settings", "value")}
        study.add_trial(optuna.trial.create_trial(
            value=math.inf if trial["value"] is None else trial["value"],
            user_attrs={POINT: point, "settings": trial["settings"], "result": result}))
    study.set_user_attr("published", True)


def unfinished(study: optuna.Study, budget: int) -> int:
    """How many of a study's quasi-random trials have not been run to their end."""
    return budget - len(list(finished(study)))


def _without_optimizer(settings: dict) -> dict:
    return {table: value for table, value in settings.items() if table != "optimizer"}


def study_name(goal: Goal, arm: str, number: int) -> str:
    """What a study is called in the storage."""
    return f"{goal.task}/{arm}/{number}"


def _has_default_rate(arm: str) -> bool:
    lr = inspect.signature(optimizer_class(arm_settings(arm)["name"])).parameters["lr"]
    return lr.default is not lr.empty


def trial_settings(goal: Goal, arm: str, point: dict, seed: int, limit: int) -> dict:
    """The complete settings of one trial.

    Raises ConfigError for a wrong override, or a schedule that ends when the trial may not.
    """
    try:
        settings = read_toml(goal.config)
        for override in goal.overrides:
            apply_override(settings, override)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    settings["experiment"] |= {"seed": seed, "stop_at": goal.target, "max_evaluations": limit,
                               "epochs": limit}  # an epoch takes at least one evaluation
    settings["optimizer"] = with_point(arm_settings(arm), point)
    settings = complete(settings, task_named(goal.task))
    schedule = settings["schedule"]
    ends = schedule["name"] != "constant" or "cosine" in schedule["weight_decay"]
    if ends and "period_epochs" not in schedule:
        raise ConfigError("[schedule] how many epochs a trial will take is not known beforehand: "
                          "one that ends needs period_epochs")
    return settings


def work(goal: Goal, arm: str, number: int, storage: BaseStorage, outputs: Path) -> None:
    """Run waiting trials of a study until there is none.

    Ctrl-C or SIGTERM puts the trial back among the waiting ones and raises Interrupted.
    """
    study = optuna.load_study(study_name=study_name(goal, arm, number), storage=storage,
                              sampler=optuna.samplers.RandomSampler())

    def objective(trial: optuna.Trial) -> float:
        if POINT not in trial.user_attrs:  # another worker took the last one first
            raise optuna.TrialPruned
        folder = outputs / goal.task / arm / f"study{number}" / f"trial{trial.number}"
        try:
            return run_trial(goal, arm, study, trial, folder)
        except (Interrupted, KeyboardInterrupt) as error:
            study.enqueue_trial({}, user_attrs={
                key: trial.user_attrs[key] for key in (POINT, "settings")})
            raise Interrupted from error

    keep_freed_memory()
    while waiting(study):
        with quiet():
            study.optimize(objective, n_trials=1)


def run_trial(goal: Goal, arm: str, study: optuna.Study, trial: optuna.Trial, folder: Path
              ) -> float:
    """Train one trial in this process; gradient evaluations to the target, infinite for a miss."""
    limit = allowance(study, goal.cap)
    point = trial.user_attrs["settings"]
    seed = int(study.study_name.rsplit("/", 1)[1])
    settings = trial_settings(goal, arm, point, seed, limit)
    settings["experiment"]["test"] = False  # tuning never sees it
    folder.mkdir(parents=True, exist_ok=True)
    run = RunFolder(folder, overwrite=True)
    with open(folder / "train.log", "w", encoding="utf-8") as log, \
            contextlib.redirect_stdout(log), contextlib.redirect_stderr(log), \
            contextlib.suppress(Diverged):
        train_function(goal.task)(settings, run)
    for name in CHECKPOINTS:
        (folder / name).unlink(missing_ok=True)
    lines = run.metrics()
    reached = next((line for line in lines if is_reached(goal, line.get(goal.metric))
                    and line["gradient_evaluations"] <= limit), None)
    values = [line[goal.metric] for line in lines if line.get(goal.metric) is not None]
    best = (max if goal.mode == "max" else min)(values) if values else None
    trial.set_user_attr("result", {
        "best": best, "limit": limit, "seed": seed, "status": run.summary()["status"],
        **({key: reached[key] for key in ("epoch", "gradient_evaluations", "seconds")}
           if reached else {})})
    value = float(reached["gradient_evaluations"]) if reached else math.inf
    said = (f"{value:.0f} gradient evaluations" if reached
            else f"missed, {goal.metric} {best} at best")
    print(f"{study.study_name} trial {trial.number}: {said}", flush=True)
    return value


def is_reached(goal: Goal, value: float | None) -> bool:
    """Whether a metric is at the target or beyond."""
    if value is None:
        return False
    return value >= goal.target if goal.mode == "max" else value <= goal.target


def allowance(study: optuna.Study, cap: int) -> int:
    """The gradient evaluations that a new trial may take."""
    best = min((value for _, value in finished(study)), default=math.inf)
    return int(min(cap, HOPELESS * best))


def finished(study: optuna.Study, defaults: bool = False) -> Iterator[tuple[dict, float]]:
    """(what was tried and found, value) of every finished quasi-random trial, or of the one with
    the defaults. What got there beyond its limit, in its last epoch, counts as a miss; a point
    that two hosts prepared at once, and so tried twice, counts once."""
    seen = set()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        point = trial.user_attrs.get(POINT)
        if (point == DEFAULTS) == defaults and point not in seen:
            seen.add(point)
            within = trial.value <= trial.user_attrs["result"]["limit"]
            yield trial.user_attrs, trial.value if within else math.inf


def waiting(study: optuna.Study) -> int:
    """How many trials wait to be run."""
    return len(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def running(study: optuna.Study) -> int:
    """How many trials are being run, by whomever."""
    return len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))


def until_done(studies: list[optuna.Study], show: Callable[[int, int], None],
               alive: Callable[[], bool], pause: float = 30.0) -> None:
    """Wait until no study has a trial waiting or running, or no worker is alive; show how many
    wait and how many run. Asking is no small thing: every study is read."""
    while True:
        left = sum(map(waiting, studies)), sum(map(running, studies))
        show(*left)
        if not alive() or not any(left):
            return
        until = time.monotonic() + pause
        while alive() and time.monotonic() < until:
            time.sleep(0.2)
