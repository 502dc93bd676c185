"""Terms of a search (all that must be equal for results to be comparable); settings of a trial."""

import hashlib
import json
import math
from collections.abc import Iterable
from copy import deepcopy
from importlib.metadata import version

from exp.harness.build import build
from exp.harness.config import complete
from exp.harness.errors import ConfigError
from exp.harness.task import Task, task_named
from exp.harness.toml import apply_override, read_toml
from exp.tune.arms import Arm, arm_named
from exp.tune.inference import EQUAL
from exp.tune.options import AMOUNTS, BASELINE, LADDER, NOISE_ARM
from exp.tune.record import log_metric
from exp.tune.suggest import GIVE_UP, START, STOP_FACTOR, study_seed

SCHEMA = "ars-arena/1"
IN_PROGRESS = f"{SCHEMA} in progress"  # a board with fewer studies than its terms announce
HOLD = 2  # consecutive readings at the target
WARMUP = 0.02  # share of the horizon, in annealed runs
LINGER = 25  # readings of a fresh run after the first one at the target, to see if it stays there


def terms_of(task: Task, asked: dict, overrides: Iterable[str] = ()) -> dict:
    """Return the terms of a task. `[tuning]` of its task.toml applies where `asked` has None for
    `target`, `cap`, `studies`, `trials` or `fresh_seeds`.

    Regime "race" measures the gradient evaluations to a target, at most `cap`, at a constant rate.
    "anneal" measures the metric after exactly `horizon` evaluations, with the rate decayed to zero;
    `cap` equals the horizon. Raises ConfigError for a task without `[tuning]`, and for an invalid
    override.
    """
    if "tuning" not in task.table:
        raise ConfigError(f"task {task.name} has no tuning goal: add [tuning] to "
                          f"exp/{task.name}/task.toml")
    goal = task.table["tuning"]
    metric = task.metric(goal.get("metric", task.primary.name))
    anneal = "horizon" in goal
    cap = asked["cap"] or goal["horizon" if anneal else "cap"]
    target = goal["target"] if asked["target"] is None else asked["target"]
    targets = goal.get("targets", [target]) if asked["target"] is None else [target]
    amounts = {key: asked[key] or goal.get(key, usual) for key, usual in AMOUNTS.items()}
    terms = {
        "task": task.name, "regime": "anneal" if anneal else "race", "metric": metric.name,
        "mode": metric.mode, "targets": targets, "main_target": target, "cap": cap,
        "evaluate_every": 1, "hold": HOLD, "linger": LINGER, "grade_at": cap // GIVE_UP,
        "stop_factor": STOP_FACTOR, "start": START, **amounts, "baseline": BASELINE,
        "noise_arm": NOISE_ARM, "alpha": 0.05, "worth_naming": 1 + EQUAL,
        "sampler": {"name": "GPSampler", "optuna": version("optuna"),
                    "values": "normal scores of ranks"},
        "study_seeds": {str(number): study_seed(f"{task.name}/{number}")
                        for number in range(1, 2 * amounts["studies"] + 1)},
        "fresh_seed": "1000 * study + j, j = 1 .. fresh_seeds",
        "config": task.config.stem, "set": [*goal["set"], *overrides]}
    terms |= {"horizon": cap, "ladder": LADDER} if anneal else {}
    return terms | _measured(terms)


def rung(terms: dict, arm: str) -> dict:
    """Return the terms of an arm: the board's, with another cap and horizon for a ladder's rung."""
    share = terms.get("ladder", {}).get(arm, 1)
    if share == 1:
        return terms
    horizon = int(share * terms["horizon"])
    return terms | {"cap": horizon, "horizon": horizon, "grade_at": horizon // GIVE_UP}


def settings_of(terms: dict, arm: Arm, optimizer: dict, seed: int, limit: int, fresh: bool = False
                ) -> dict:
    """Return the complete settings of a run of at most `limit` gradient evaluations. A `fresh` run
    continues after the target in a race; if annealed, it is tested where the task has a test split.

    Raises ConfigError for an override that is invalid or that the search would replace, and in a
    race for a schedule that ends but has no `period_epochs`.
    """
    task = task_named(terms["task"])
    settings = read_toml(task.config)
    try:
        for override in terms["set"]:
            apply_override(settings, override)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    settings["experiment"] |= {"seed": seed, "epochs": limit, "diagnostics": False}
    if terms["regime"] == "anneal":
        settings["experiment"] |= {"max_evaluations": limit, "test": fresh}
        settings["schedule"] = {
            "name": "wsd", "clock": "evaluations", "warmup_steps": round(WARMUP * limit),
            "period_epochs": limit / terms["evaluate_every"]}
    else:
        epoch = terms["evaluate_every"] * math.ceil(arm.gradient_evaluations_per_step)
        settings["experiment"] |= {
            "stop_at": terms["main_target"], "hold": terms["hold"],
            "linger": terms["linger"] + 1 - terms["hold"] if fresh else 0,
            "max_evaluations": max(1, limit - epoch + 1),  # the last epoch ends within the limit
            "test": False}
    settings["optimizer"] = optimizer
    _require_kept(terms["set"], settings)
    settings = complete(settings, task)
    schedule = settings["schedule"]
    ends = schedule["name"] != "constant" or "cosine" in schedule["weight_decay"]
    if ends and "period_epochs" not in schedule:
        raise ConfigError("[schedule] period_epochs is missing: a decaying schedule needs it, "
                          "as the length of a trial is not known in advance")
    return settings


def _require_kept(overrides: Iterable[str], settings: dict) -> None:
    """Raise ConfigError if the settings of a run do not have the values of the overrides."""
    wanted = deepcopy(settings)
    for override in overrides:
        apply_override(wanted, override)
    replaced = [f"{name}.{key}" for name, table in wanted.items() if table != settings.get(name)
                for key in sorted({*table, *settings.get(name, {})})
                if table.get(key) != settings.get(name, {}).get(key)]
    if replaced:
        raise ConfigError(f"--set cannot change {', '.join(replaced)}: the search sets it")


def numbers_of(arm: str, terms: dict) -> range:
    """Return the study numbers of an arm: 1 to K, or K + 1 to 2 K for the noise arm."""
    first = terms["studies"] + 1 if arm == terms["noise_arm"] else 1
    return range(first, first + terms["studies"])


def seeds_of(study: int, count: int) -> list[int]:
    """Return the seeds of a study's fresh runs; no two studies share a seed."""
    return [1000 * study + number for number in range(1, count + 1)]


def code_of(recipes: dict[str, int]) -> str:
    """Return a hash, 12 hexadecimal digits, of the RECIPE numbers behind a study."""
    return hashlib.sha256(json.dumps(recipes, sort_keys=True).encode()).hexdigest()[:12]


def _measured(terms: dict) -> dict:
    """Return the terms that need a built model: `evaluate_every`, steps between two readings, and
    for annealed runs `worst`, the log metric of an untrained model."""
    arm, task = arm_named(terms["baseline"], terms["cap"]), task_named(terms["task"])
    table = arm.settings(arm.defaults, terms["cap"])
    built = build(settings_of(terms, arm, table, 0, terms["cap"]), task)
    measured: dict[str, float] = {"evaluate_every": len(built.data.train)}
    if terms["regime"] == "anneal":
        untrained = task.evaluate(built.objective, built.data)[terms["metric"]]
        measured["worst"] = log_metric(terms, untrained)
    return measured
