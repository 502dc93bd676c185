"""Search spaces: what of an arm is searched, and the quasi-random points of a study."""

import importlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import qmc

from exp.harness.errors import ConfigError
from exp.harness.facts import ROOT
from exp.harness.task import task_named
from exp.harness.toml import read_toml
from exp.tune.cells import ARMS, read_ablation
from optimizer import available_optimizers, is_wrapper, optimizer_class


@dataclass(frozen=True)
class Goal:
    """What a task is tuned for: reach `target` of `metric` within `cap` gradient evaluations."""

    task: str
    config: Path
    metric: str
    mode: str
    target: float
    cap: int
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Range:
    """One searched number between low and high, even on a log or a linear scale."""

    low: float
    high: float
    log: bool

    def at(self, share: float) -> float:
        """The value a share of the way, to four digits: what the config says is what ran."""
        if self.log:
            value = math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        else:
            value = self.low + share * (self.high - self.low)
        return float(f"{value:.4g}")

    def share(self, value: float) -> float:
        """How far from low to high a value is: what `at` takes."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Choice:
    """One of a list of values."""

    values: tuple

    def at(self, share: float) -> Any:
        """The value whose part of [0, 1) holds the share."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]


Space = dict[str, Range | Choice]


def goal_of(
    name: str, target: float | None = None, cap: int | None = None, overrides: Iterable[str] = ()
) -> Goal:
    """The tuning goal of a task: `[tuning]` of its task.toml, where nothing else is given.

    Raises ConfigError for a task that does not exist or has no `[tuning]`.
    """
    task = task_named(name)
    if "tuning" not in task.table:
        raise ConfigError(f"task {name} has no tuning goal: add [tuning] to exp/{name}/task.toml")
    entry = task.table["tuning"]
    metric = task.metric(entry.get("metric", task.primary.name))
    return Goal(name, task.config, metric.name, metric.mode,
                entry["target"] if target is None else target, cap or entry["cap"],
                (*entry["set"], *overrides))


def arm_settings(arm: str) -> dict:
    """The `[optimizer]` table of an arm before anything is searched.

    Raises ConfigError for a name that is neither an arm nor an optimizer.
    """
    arms = read_toml(ARMS)["arms"]
    if arm in arms:
        return arms[arm]
    ablation = read_ablation()
    if arm in (cells := ablation.arms()):
        return ablation.arm_settings(cells[arm])
    try:
        if is_wrapper(optimizer_class(arm)):
            raise ConfigError(f"{arm!r} wraps another optimizer; arms: {', '.join(arms)}")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return {"name": arm}


def all_arms() -> list[str]:
    """Every arm that has a search space: the modes of arms.toml and all optimizers besides."""
    content = read_toml(ARMS)
    staged = {entry["name"] for arm, entry in content["arms"].items() if arm.startswith(
        entry["name"])}  # searched in its modes
    own = [name for name in available_optimizers() if name not in staged
           and not is_wrapper(optimizer_class(name)) and _declared(name, content["spaces"])]
    return sorted({*own, *content["arms"]})


def search_space(arm: str) -> Space:
    """The searched keys of an arm, "adamw.lr" for one of a table; those it fixes are left out.

    Raises ConfigError for an optimizer without a search space.
    """
    settings = arm_settings(arm)
    spaces = read_toml(ARMS)["spaces"]
    space = _declared(settings["name"], spaces)
    if not space:
        raise ConfigError(f"{settings['name']} has no search space: add [spaces.{arm}] to "
                          f"{ARMS.relative_to(ROOT)}")
    for wrapper in (key for key, value in settings.items() if isinstance(value, dict)):
        space |= {f"{wrapper}.{key}": value for key, value in _declared(wrapper, spaces).items()}
    ablation = read_ablation()
    space |= ablation.own_space(ablation.arms().get(arm, {}))
    return {key: axis_of(value) for key, value in space.items() if not _fixed(settings, key)}


def points(space: Space, count: int, seed: int) -> list[dict]:
    """The first `count` points of a scrambled Halton sequence in the space: more can be had
    later, and the first ones stay."""
    sequence = qmc.Halton(len(space), scramble=True, rng=seed)
    return [{key: axis.at(share) for (key, axis), share in zip(space.items(), row, strict=True)}
            for row in sequence.random(count).tolist()]


def with_point(settings: dict, point: dict) -> dict:
    """The `[optimizer]` table of an arm with the searched values put in."""
    result = json.loads(json.dumps(settings))
    for key, value in point.items():
        *tables, name = key.split(".")
        place = result
        for table in tables:
            place = place.setdefault(table, {})
        place[name] = value
    return result


def _declared(name: str, spaces: dict) -> dict:
    """SEARCH_SPACE of a file of ours, or the space that arms.toml gives one of torch.optim's."""
    cls = optimizer_class(name)
    module = importlib.import_module(cls.__module__)
    return dict(getattr(module, "SEARCH_SPACE", None) or spaces.get(name, {}))


def axis_of(value: Any) -> Range | Choice:
    """One searched key as SEARCH_SPACE and arms.toml have it."""
    if isinstance(value, dict):
        return Choice(tuple(value["choices"]))
    if isinstance(value, list | tuple) and len(value) == 3 and value[2] in ("log", "linear"):
        return Range(value[0], value[1], value[2] == "log")
    return Choice(tuple(value))


def _fixed(settings: dict, key: str) -> bool:
    *tables, name = key.split(".")
    for table in tables:
        settings = settings.get(table, {})
    return name in settings
