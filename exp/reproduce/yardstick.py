"""What runs are compared by, and what each has spent: the numbers of kept runs."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from exp.harness.task import FRACTION, Metric
from exp.reproduce.plan import Table

PERCENT = 100.0


@dataclass(frozen=True)
class Yardstick:
    """A metric, and a milestone: the task's own of that name, or the first epoch whose metric
    reaches the threshold."""

    metric: Metric
    milestone: str = ""
    threshold: float | None = None

    @classmethod
    def of(cls, table: Table, protocol: str) -> "Yardstick":
        """A table's, under a protocol."""
        return cls(table.metric(protocol), table.milestone, table.threshold)

    @property
    def scale(self) -> float:
        """What a value is multiplied by to be in the metric's unit."""
        return PERCENT if self.metric.unit == FRACTION else 1.0

    def curve(self, run: dict) -> list[float | None]:
        """The metric after each epoch, None where it was not finite."""
        return run["curve"].get(self.metric.name, [])

    def best(self, run: dict, axis: str = "epochs", budget: float = math.inf) -> float:
        """The value of the best epoch of those that end within `budget` on an axis (see `spent`);
        nan if none does."""
        values = [value for value, cost in zip(self.curve(run), spent(run, axis), strict=False)
                  if value is not None and cost <= budget]
        return self.metric.best(values) if values else math.nan

    def last(self, run: dict) -> float:
        """The value of the last epoch."""
        return number_or_nan((self.curve(run) or [None])[-1])

    def epoch(self, run: dict) -> int | None:
        """The epoch of the milestone, None if it was not reached."""
        if self.threshold is None:
            return run["milestones"][self.milestone]
        return next((epoch for epoch, value in enumerate(self.curve(run), 1)
                     if self.metric.reaches(value, self.threshold)), None)

    def times(self, runs: Iterable[dict], axis: str = "epochs") -> tuple[list, list]:
        """What each run spent to reach the milestone, None if it did not, and how long each was
        watched."""
        runs = list(runs)
        return [None if (epoch := self.epoch(run)) is None else spent(run, axis)[epoch - 1]
                for run in runs], watched(runs, axis)

    def capped_epochs(self, runs: Iterable[dict]) -> list[float]:
        """The epoch of the milestone of every run, its last epoch where it was not reached."""
        return [end if time is None else time
                for time, end in zip(*self.times(runs), strict=True)]


def spent(run: dict, axis: str) -> list[float]:
    """What a run had spent at the end of each epoch: "epochs", "gradient_evaluations" or
    "seconds"."""
    return list(range(1, run["epochs"] + 1)) if axis == "epochs" else run["curve"].get(axis, [])


def watched(runs: Iterable[dict], axis: str = "epochs") -> list[float]:
    """How long each run was watched for a milestone; one that diverged as long as the longest: it
    would not have reached it later."""
    runs = list(runs)
    ends = [(spent(run, axis) or [0])[-1] for run in runs]
    return [max(ends) if run["status"] == "diverged" else end
            for run, end in zip(runs, ends, strict=True)]


def number_or_nan(value: float | None) -> float:
    """The value, nan for None: what a run that diverged recorded."""
    return math.nan if value is None else value
