"""Configuration: read, override, check and complete a TOML file, before anything is built."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch.optim import AdamW

from exp.harness import schema
from exp.harness.errors import ConfigError
from exp.harness.schedule import Schedule
from exp.harness.task import Task
from exp.harness.toml import apply_override, drop_key, read_toml, shown
from model import available_models, model_class
from optimizer import GIVEN_BY_CODE, available_optimizers, is_wrapper, optimizer_class
from optimizer.parts.matrix import ADAMW_KEYS, MatrixOptimizer
from optimizer.parts.split import OWN_GROUPS, Routing

Instrument = Literal["spectrum", "updates", "alignment", "sharpness"]
Sharding = Literal["none", "optimizer", "model"]

# Arguments of Schedule that are no keys of the table.
GIVEN_TO_SCHEDULE = ("optimizer", "epochs", "steps_per_epoch", "batch_size")
TABLES = ("experiment", "data", "model", "optimizer", "schedule")


@dataclass(frozen=True)
class Experiment:
    """The `[experiment]` table."""

    # docs/config.md shows these comments.
    task: str  # name of the task, which is that of the script: exp.<task>.train
    epochs: int  # length of the run; every epoch ends with an evaluation
    seed: int = 42  # seed of the weights, the order of batches and dropout
    device: Literal["auto", "cpu", "cuda"] = "auto"  # "auto": CUDA if available
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"  # "tf32" on CUDA; "bf16": autocast
    compile: bool = False  # compile the model; needs a C++ compiler, on CUDA triton
    clip_norm: float | None = None  # largest norm of a gradient; matrix and AdamW tracks apart
    accumulation: int = 1  # micro-batches per batch, computed one after the other
    label_smoothing: float = 0.0  # share of each target that is uniform; classification only
    sharding: Sharding = "optimizer"  # what processes (torchrun) shard besides the batch
    checkpoints: bool = True  # latest.pt and best.pt; without them a run cannot be resumed
    tensorboard: bool = False  # write event files to the run folder
    logger: Literal["none", "wandb", "trackio"] = "none"  # also send the metrics there
    diagnostics: bool | list[Instrument] = True  # record the optimizer's numbers, and instruments'
    diagnostics_every: int | None = None  # steps between measurements; default: those of an epoch
    stop_at: float | None = None  # end the run when the task's primary metric is as good as this
    hold: int = 1  # consecutive epochs in which the metric must be as good as `stop_at`
    linger: int = 0  # epochs to train on after `stop_at` is reached
    max_evaluations: int | None = None  # end the run with the epoch that reaches so many gradients
    test: bool = True  # evaluate the best weights on the test split, if any, at the end

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be >= 1, got {self.epochs}")
        if self.max_evaluations is not None and self.max_evaluations < 1:
            raise ValueError(f"max_evaluations must be >= 1, got {self.max_evaluations}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be > 0, got {self.clip_norm}")
        if self.accumulation < 1:
            raise ValueError(f"accumulation must be >= 1, got {self.accumulation}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if self.hold < 1:
            raise ValueError(f"hold must be >= 1, got {self.hold}")
        if self.linger < 0:
            raise ValueError(f"linger must be >= 0, got {self.linger}")
        if self.stop_at is None and (self.hold, self.linger) != (1, 0):
            raise ValueError(f"hold {self.hold} and linger {self.linger} have no effect without "
                             "stop_at")
        if self.diagnostics_every is not None and self.diagnostics_every < 1:
            raise ValueError(f"diagnostics_every must be >= 1, got {self.diagnostics_every}")
        if self.diagnostics_every is not None and self.diagnostics in (True, False, []):
            raise ValueError(f"diagnostics_every {self.diagnostics_every} has no effect: "
                             "diagnostics names no instrument")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2**63), got {self.seed}")


def load_settings(path: Path, overrides: Iterable[str], task: Task, *, unset: Iterable[str] = (),
                  optimizer: str | None = None) -> dict[str, dict]:
    """Read a config, replace its `[optimizer]` table by the defaults of `optimizer`, drop the keys
    `unset`, apply `table.key=value` overrides, check it, and fill in every default.

    Raises ConfigError with all problems, one per line.
    """
    try:
        settings = read_toml(path)
        if optimizer is not None:
            settings["optimizer"] = {"name": optimizer}
        for key in unset:
            drop_key(settings, key)
        for override in overrides:
            apply_override(settings, override)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return complete(settings, task)


def complete(settings: dict[str, dict], task: Task) -> dict[str, dict]:
    """Check every table against the signature it is passed to, and fill in every default.

    Raises ConfigError with all problems, one per line.
    """
    problems = [f"unknown table [{shown(name)}]. Accepted: {', '.join(TABLES)}"
             for name in settings if name not in TABLES]
    problems += [f"[{name}] must be a table" for name in TABLES
              if not isinstance(settings.get(name, {}), dict)]
    problems += [f"missing table [{name}]" for name in TABLES[:4] if name not in settings]
    if problems:
        raise ConfigError("\n".join(problems))
    name = settings["experiment"].get("task", task.name)
    if name != task.name:
        raise ConfigError(f"[experiment] task is {name!r}: run python -m exp.{shown(str(name))}"
                          f".train (this script trains {task.name!r})")
    simple = {
        "experiment": schema.keywords(Experiment),
        "data": schema.keywords(task.data, ("seed", "device")),
        "schedule": schema.keywords(Schedule, GIVEN_TO_SCHEDULE),
    }
    done = {}
    for table, accepted in simple.items():
        given = settings.get(table, {})
        problems += schema.problems(table, given, accepted)
        done[table] = {**schema.defaults(accepted), **given}
    for table, finish in (("model", _model), ("optimizer", _optimizer)):
        done[table] = finish(settings[table], task, problems)
    if not problems:
        problems += _refused(lambda: Experiment(**done["experiment"]), "experiment")
    if problems:
        raise ConfigError("\n".join(problems))
    return {table: done[table] for table in TABLES}


def complete_recorded(settings: dict[str, dict], task: Task) -> dict[str, dict]:
    """Complete the settings of a record with today's defaults for keys that it lacks.

    The table of a library's optimizer ("package:Class") is returned as recorded, because nothing
    that a record names is imported. Raises ConfigError as `complete`.
    """
    optimizer = settings.get("optimizer")
    if isinstance(optimizer, dict) and any(":" in str(name) for name in (
            optimizer.get("name"), *optimizer)):
        return {**complete({**settings, "optimizer": {"name": "adamw"}}, task),
                "optimizer": optimizer}
    return complete(settings, task)


def wrappers(optimizer: dict) -> list[str]:
    """Names of the wrappers in an `[optimizer]` table, innermost first."""
    return [key for key, table in optimizer.items() if isinstance(table, dict) and key != "adamw"]


def _model(given: dict, task: Task, problems: list[str]) -> dict:
    cls = _named(model_class, "model", given, problems)
    if cls is None:
        return given
    accepted = schema.keywords(cls, task.sizes)
    problems += schema.problems("model", given, accepted, extra=("name",))
    return {**schema.defaults(accepted), **given}


def _optimizer(given: dict, task: Task, problems: list[str]) -> dict:
    cls = _named(optimizer_class, "optimizer", given, problems)
    if cls is None:
        return given
    if is_wrapper(cls):
        problems.append(f"[optimizer] {given['name']!r} wraps another optimizer: set name to the "
                        f"wrapped one and add a table [optimizer.{given['name']}]")
        return given
    accepted = schema.keywords(cls, GIVEN_BY_CODE)
    tables = {key: value for key, value in given.items() if isinstance(value, dict)}
    routed = issubclass(cls, MatrixOptimizer) or "routing" in given or "adamw" in tables
    problems += schema.problems("optimizer", given, accepted, extra=("name", "routing", *tables))
    if routed and not schema.conforms(given.get("routing", "role"), Routing):
        problems.append(f"[optimizer] routing must be {schema.describe(Routing)},"
                     f" got {given['routing']!r}")
    done = {**schema.defaults(accepted), **({"routing": "role"} if routed else {}), **given}
    for key, table in tables.items():
        done[key] = _optimizer_table(key, table, problems)
    return done


def _optimizer_table(key: str, table: dict, problems: list[str]) -> dict:
    """Check `[optimizer.adamw]` and its tables of roles, or complete a wrapper's table."""
    if key == "adamw":
        roles = {role: table[role] for role in OWN_GROUPS if isinstance(table.get(role), dict)}
        shared = {name: value for name, value in table.items() if name not in roles}
        problems += _adamw_problems("optimizer.adamw", shared)
        for role, settings in roles.items():
            problems += _adamw_problems(f"optimizer.adamw.{role}", settings)
        return table
    cls = _named(optimizer_class, f"optimizer.{shown(key)}", {"name": key}, problems)
    if cls is None:
        return table
    if not is_wrapper(cls):
        problems.append(f"[optimizer.{shown(key)}] {key!r} is not a wrapper: set it as "
                        "[optimizer] name")
        return table
    accepted = schema.keywords(cls, GIVEN_BY_CODE)
    problems += schema.problems(f"optimizer.{shown(key)}", table, accepted)
    return {**schema.defaults(accepted), **table}


def _adamw_problems(table: str, given: dict) -> list[str]:
    known = schema.keywords(optimizer_class("adamw"), GIVEN_BY_CODE)
    wrong = schema.problems(table, given, {key: known[key] for key in ADAMW_KEYS})
    return wrong or _refused(lambda: AdamW([torch.zeros(1)], **given), table)


def _refused(construct: Callable, table: str) -> list[str]:
    """Return the ValueError that `construct` raises, as a list of at most one problem."""
    try:
        construct()
    except ValueError as error:
        return [f"[{table}] {error}"]
    return []


def _named(find: Callable, table: str, given: dict, problems: list[str]) -> type | None:
    """Return the class that a table names, or append to `problems` and return None."""
    if not isinstance(given.get("name"), str):
        problems.append(f"[{table}] missing key 'name' (a string)")
        return None
    try:
        return find(given["name"])
    except ValueError as error:
        available = available_models() if find is model_class else available_optimizers()
        problems.append(f"[{table}] {error}.{schema.nearest(given['name'], available)}")
        return None
