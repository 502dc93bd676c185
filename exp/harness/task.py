"""Task: data, loss, evaluation, metrics and sizes of one kind of training run.

A task is a folder `exp/<name>/` with two files: train.py defines `TASK` and the training loop,
task.toml holds its baseline config, its scales and its tuning goal. Tasks are found by folder.
"""

import importlib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from exp.harness.errors import ConfigError
from exp.harness.schema import nearest
from exp.harness.toml import overrides_of

EXP = Path(__file__).parents[1]
FRACTION = "%"  # the unit of metrics in [0, 1], which pages and plots show in per cent


@dataclass(frozen=True)
class Metric:
    """One number that `evaluate` returns.

    name: its key in metrics.jsonl, "eval_..."; mode: whether "max" or "min" is better.
    unit: "%" for fractions, else what pages print after the number; label: on axes and in logs.
    primary: whether best.pt, `stop_at` and tuning use it; true of one metric per task.
    """

    name: str
    mode: Literal["max", "min"]
    unit: str
    label: str
    primary: bool = False

    def is_better(self, value: float, other: float) -> bool:
        """Whether `value` is strictly better than `other`."""
        return value > other if self.mode == "max" else value < other

    def reaches(self, value: float | None, target: float) -> bool:
        """Whether `value` is at least as good as `target`; None never is."""
        return value is not None and not self.is_better(target, value)

    def best(self, values: list[float]) -> float:
        """Return the best of `values`."""
        return max(values) if self.mode == "max" else min(values)


LOSS = Metric("eval_loss", "min", "nats", "loss")


@dataclass(frozen=True)
class Task:
    """A task, as its train.py defines it.

    name: the name of its folder.
    data(**settings, seed=, device=): loads the data set; its signature is the schema of `[data]`.
    sizes: attributes of the data set that are passed to the model's constructor.
    loss_fn(model, *batch): mean loss of a batch (nats) and further means, see `Objective`.
    evaluate(objective, data, split="eval"): every metric on that split, and "eval_loss".
    metrics: exactly one is primary. milestones: name -> (metric, threshold); the first epoch whose
    metric reaches the threshold is recorded.
    """

    name: str
    data: Callable
    sizes: tuple[str, ...]
    loss_fn: Callable
    evaluate: Callable[..., dict[str, float]]
    metrics: tuple[Metric, ...]
    milestones: Mapping[str, tuple[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if sum(metric.primary for metric in self.metrics) != 1:
            raise ValueError(f"task {self.name}: exactly one metric must be primary")

    @property
    def primary(self) -> Metric:
        """The metric by which runs are compared."""
        return next(metric for metric in self.metrics if metric.primary)

    def metric(self, name: str) -> Metric:
        """Return the metric of that name; "train_x" and "test_x" give the metric "eval_x".

        Raises ConfigError for a name that the task does not declare.
        """
        known = {metric.name: metric for metric in (LOSS, *self.metrics)}
        key = "eval_" + name.removeprefix("train_").removeprefix("test_").removeprefix("eval_")
        if key not in known:
            raise ConfigError(f"task {self.name} has no metric {name!r}.{nearest(name, known)}"
                              f" Metrics: {', '.join(known)}")
        return known[key]

    @cached_property
    def table(self) -> dict[str, Any]:
        """The content of task.toml."""
        return tomllib.loads((EXP / self.name / "task.toml").read_text(encoding="utf-8"))

    @property
    def config(self) -> Path:
        """Path of the baseline's config: data, model and schedule for experiments on a CPU."""
        return EXP.parent / "config" / f"{self.table['config']}.toml"

    @property
    def published(self) -> Path:
        """Path of the baseline's config with the published data and model; default: `config`."""
        name = self.table.get("published", self.table["config"])
        return EXP.parent / "config" / f"{name}.toml"

    @property
    def scales(self) -> dict[str, dict[str, dict]]:
        """Scale -> table -> settings that bring any config of the task to that size."""
        return self.table["scales"]

    def scale(self, name: str) -> tuple[str, ...]:
        """Return a scale as `--set` options. Raises ConfigError for an unknown scale."""
        if name not in self.scales:
            raise ConfigError(f"task {self.name} has no scale {name!r}. Scales: "
                              f"{', '.join(self.scales)}")
        return overrides_of(self.scales[name])


def tasks() -> list[str]:
    """Names of all tasks, sorted."""
    return sorted(path.parent.name for path in EXP.glob("*/train.py"))


def task_named(name: str) -> Task:
    """Return the task in exp/<name>/. Raises ConfigError if there is none."""
    return _script(name).TASK


def train_function(name: str) -> Callable:
    """Return the training loop of exp/<name>/train.py: train(settings, folder)."""
    return _script(name).train


def _script(name: str) -> Any:
    if name not in tasks():
        raise ConfigError(f"no task {name!r}.{nearest(name, tasks())} Tasks: {', '.join(tasks())}")
    return importlib.import_module(f"exp.{name}.train")
