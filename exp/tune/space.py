"""Search spaces: the axes of a chain and their coordinates in the unit cube."""

import math
from dataclasses import dataclass
from typing import Any

AXES = ("lr", "decay_time", "aux_lr", "memory")  # common axes, in the order of Sobol coordinates
SPREAD = 30.0  # a range reaches from the default divided by SPREAD to the default times SPREAD
DIGITS = 6  # significant digits of a value


@dataclass(frozen=True)
class Range:
    """A positive number between low and high, uniform on a log scale."""

    low: float
    high: float

    def at(self, share: float) -> float:
        """Return the value at a share in [0, 1] of the range, to six digits."""
        return significant(self.low * (self.high / self.low) ** share)

    def share(self, value: float) -> float:
        """The inverse of `at`."""
        return math.log(self.clip(value) / self.low) / math.log(self.high / self.low)

    def clip(self, value: float) -> float:
        """Return the value, clipped to the range."""
        return min(max(value, self.low), self.high)

    def record(self) -> list:
        """Return the axis in the form of a board's JSON."""
        return [self.low, self.high, "log"]


@dataclass(frozen=True)
class Choice:
    """One of several ordered values. Any other value is treated as the one at index `nearest`."""

    values: tuple
    nearest: int = 0

    def at(self, share: float) -> Any:
        """Return the value at a share in [0, 1], which is divided equally among the values."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def index(self, value: Any) -> int:
        """Return the index of a value."""
        return self.values.index(value) if value in self.values else self.nearest

    def record(self) -> dict:
        """Return the axis in the form of a board's JSON."""
        return {"choices": list(self.values), "nearest": self.nearest}


Space = dict[str, Range | Choice]


def around(default: float, low: float = 0.0, high: float = math.inf) -> Range:
    """Return the range from default / SPREAD to default * SPREAD, clipped to [low, high]."""
    return Range(max(default / SPREAD, low), min(default * SPREAD, high))


def axis_of(record: list | dict) -> Range | Choice:
    """Return the axis of a record, the inverse of `record`."""
    if isinstance(record, dict):
        return Choice(tuple(record["choices"]), record["nearest"])
    return Range(*record[:2])


def significant(value: float) -> float:
    """Round to six digits, so that the number in a config is exactly the one that ran."""
    return float(f"{value:.{DIGITS}g}")
