"""Yardstick: the metric or milestone by which kept runs are compared, and the runs' costs."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from exp.harness.errors import ConfigError
from exp.harness.task import FRACTION, Metric
from exp.reproduce.plan import Table

PERCENT = 100.0


@dataclass(frozen=True)
class Yardstick:
    """A metric and a milestone: the task's milestone of that name or, with a threshold, the first
    epoch whose metric reaches it."""

    metric: Metric
    milestone: str = ""
    threshold: float | None = None

    @classmethod
    def of(cls, table: Table, protocol: str) -> "Yardstick":
        """The yardstick of a table under a protocol. Raises ConfigError for a grid that has neither
        a milestone nor a metric of which less is better."""
        metric = table.metric(protocol)
        if table.grid and not table.milestone and metric.mode == "max":
            raise ConfigError(f"table {table.name}: a grid needs a milestone or a metric of which "
                              f"less is better, not {metric.name}")
        return cls(metric, table.milestone, table.threshold)

    @property
    def scale(self) -> float:
        """Factor that converts a value to the metric's unit."""
        return PERCENT if self.metric.unit == FRACTION else 1.0

    def curve(self, run: dict) -> list[float | None]:
        """The metric after each epoch, None if it was not finite."""
        return run["curve"].get(self.metric.name, [])

    def best(self, run: dict, axis: str = "epochs", budget: float = math.inf) -> float:
        """The best value of the epochs that end within `budget` on an axis (see `spent`); nan if
        there is none."""
        values = [value for value, cost in zip(self.curve(run), spent(run, axis), strict=False)
                  if value is not None and cost <= budget]
        return self.metric.best(values) if values else math.nan

    def last(self, run: dict) -> float:
        """The value of the last epoch, nan if it was not finite."""
        return number_or_nan((self.curve(run) or [None])[-1])

    def epoch(self, run: dict) -> int | None:
        """The epoch of the milestone, None if it was not reached."""
        if self.threshold is None:
            return run["milestones"][self.milestone]
        return next((epoch for epoch, value in enumerate(self.curve(run), 1)
                     if self.metric.reaches(value, self.threshold)), None)

    def times(self, runs: Iterable[dict], axis: str = "epochs") -> tuple[list, list]:
        """Return each run's cost to the milestone, None if not reached, and each run's censoring
        time (see `watched`)."""
        runs = list(runs)
        return [None if (epoch := self.epoch(run)) is None else spent(run, axis)[epoch - 1]
                for run in runs], watched(runs, axis)

    def capped_epochs(self, runs: Iterable[dict]) -> list[float]:
        """The epoch of the milestone of every run, its last epoch if it was not reached."""
        return [end if time is None else time
                for time, end in zip(*self.times(runs), strict=True)]

    @property
    def outcome(self) -> str:
        """What `result` is, in words: "epochs to converged", say, or "last perplexity"."""
        return f"epochs to {self.milestone}" if self.milestone else f"last {self.metric.label}"

    @property
    def missed(self) -> str:
        """How `finite_results` counts a run without a `result`, in words."""
        return (f"did not reach {self.milestone} counts at its last epoch" if self.milestone else
                "diverged counts at its worst reading")

    def result(self, run: dict) -> float | None:
        """One number of a run, less is better: the epoch of the milestone (None if not reached), or
        without a milestone the last value of the metric (None if not finite)."""
        if self.milestone:
            return self.epoch(run)
        return None if math.isnan(last := self.last(run)) else last

    def finite_results(self, runs: Iterable[dict]) -> list[float]:
        """The `result` of every run. A run that did not reach the milestone counts at its last
        epoch, and one whose last value is not finite at its worst reading."""
        if self.milestone:
            return self.capped_epochs(runs)
        return [max((value for value in self.curve(run) if value is not None), default=math.inf)
                if (result := self.result(run)) is None else result for run in runs]


def spent(run: dict, axis: str) -> list[float]:
    """Cumulative cost of a run after each epoch. axis: "epochs", "gradient_evaluations" or
    "seconds"."""
    return list(range(1, run["epochs"] + 1)) if axis == "epochs" else run["curve"].get(axis, [])


def watched(runs: Iterable[dict], axis: str = "epochs") -> list[float]:
    """Censoring time of each run: its total cost; for one that diverged the largest total cost,
    because it would not have reached a milestone later."""
    runs = list(runs)
    ends = [(spent(run, axis) or [0])[-1] for run in runs]
    return [max(ends) if run["status"] == "diverged" else end
            for run, end in zip(runs, ends, strict=True)]


def number_or_nan(value: float | None) -> float:
    """The value, nan for None (recorded for a value that was not finite)."""
    return math.nan if value is None else value
