"""Studies on Optuna: quasi-random trials of one arm, run by any number of workers on any hosts.

A trial's value is the gradient evaluations it took to the target, infinite for a miss. A trial is
given up when it has taken HOPELESS times as many as the best of its study: it can then neither
win nor count as near the best, so that the rule changes no score and favours no optimizer.
"""

import contextlib
import importlib
import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState

from exp.harness.config import complete
from exp.harness.device import keep_freed_memory
from exp.harness.errors import ConfigError
from exp.harness.folder import RunFolder
from exp.harness.run import Diverged, Interrupted
from exp.harness.toml import apply_override, read_toml
from exp.jobs.queue import task_named
from exp.tune.space import Goal, arm_settings, points, search_space, with_point
from optimizer import optimizer_class

HOPELESS = 2.0
HEARTBEAT_SECONDS, GRACE_SECONDS = 30, 120  # after which a silent worker's trial is tried again
RETRIES = 3
POINT, DEFAULTS, CHECKPOINTS = "point", "defaults", ("latest.pt", "best.pt")


def open_storage(url: str) -> BaseStorage:
    """Any Optuna storage: a database URL (sqlite:///tune.db), or a path of a journal file.

    Trials of a database that a dead worker left are tried again. Raises ConfigError if it cannot
    be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        if "://" in url:
            # The heartbeat is marked experimental and announces it at every start.
            with contextlib.suppress(ImportError), _quiet():
                return RDBStorage(
                    url, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=GRACE_SECONDS,
                    heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(RETRIES),
                    engine_kwargs={"connect_args": {"timeout": 60}} if "sqlite" in url else None)
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        return JournalStorage(JournalFileBackend(url))
    except Exception as error:  # a database has many ways to fail
        raise ConfigError(f"cannot open the storage {url}: {error}") from error


def prepare(goal: Goal, arm: str, number: int, budget: int, storage: BaseStorage,
            defaults: bool = True) -> optuna.Study:
    """The study `number` of an arm with `budget` quasi-random trials, and one of the `defaults`
    unless they are none of the arm's own; those that are missing are waiting to be run.

    Raises ConfigError if it was begun with another target, cap or search space.
    """
    study = optuna.create_study(study_name=study_name(goal, arm, number), storage=storage,
                                load_if_exists=True, sampler=optuna.samplers.RandomSampler())
    space = search_space(arm)
    terms = {"metric": goal.metric, "target": goal.target, "cap": goal.cap,
             "set": list(goal.overrides), "space": {k: repr(v) for k, v in space.items()}}
    begun = study.user_attrs.get("terms")
    if begun is not None and begun != terms:
        raise ConfigError(f"{study.study_name} was begun on other terms: give another --storage")
    study.set_user_attr("terms", terms)
    with _quiet():
        optuna.storages.fail_stale_trials(study)  # a dead worker's trials wait again
    there = {trial.user_attrs.get(POINT) for trial in study.get_trials(deepcopy=False)
             if trial.state != TrialState.FAIL}
    for index, point in enumerate(points(space, budget, seed=number)):
        if index not in there:
            study.enqueue_trial({}, user_attrs={POINT: index, "settings": point})
    if defaults and DEFAULTS not in there and _has_default_rate(arm):
        study.enqueue_trial({}, user_attrs={POINT: DEFAULTS, "settings": {}})
    return study


def study_name(goal: Goal, arm: str, number: int) -> str:
    """What a study is called in the storage."""
    return f"{goal.task}/{arm}/{number}"


def _has_default_rate(arm: str) -> bool:
    lr = inspect.signature(optimizer_class(arm_settings(arm)["name"])).parameters["lr"]
    return lr.default is not lr.empty


def trial_settings(goal: Goal, arm: str, point: dict, seed: int, limit: int) -> dict:
    """The complete settings of one trial. Raises ConfigError."""
    settings = read_toml(goal.config)
    for override in goal.overrides:
        apply_override(settings, override)
    settings["experiment"] |= {"seed": seed, "stop_at": goal.target, "max_evaluations": limit,
                               "epochs": limit}  # an epoch takes at least one evaluation
    settings["optimizer"] = with_point(arm_settings(arm), point)
    return complete(settings, task_named(goal.task))


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
        with _quiet():
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
    train = importlib.import_module(f"exp.{goal.task}.train").train
    run = RunFolder(folder, overwrite=True)
    with open(folder / "train.log", "w", encoding="utf-8") as log, \
            contextlib.redirect_stdout(log), contextlib.redirect_stderr(log), \
            contextlib.suppress(Diverged):
        train(settings, run)
    for name in CHECKPOINTS:
        (folder / name).unlink(missing_ok=True)
    lines = run.metrics()
    reached = next((line for line in lines if is_reached(goal, line.get(goal.metric))), None)
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
    the defaults."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if (trial.user_attrs.get(POINT) == DEFAULTS) == defaults:
            yield trial.user_attrs, trial.value


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


@contextlib.contextmanager
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
