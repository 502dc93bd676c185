"""Search spaces: the axes of a chain and their coordinates in the unit cube."""

import math
from dataclasses import dataclass
from typing import Any

AXES = ("lr", "decay_time", "aux_lr", "memory")  # of every arm that has them, in Sobol's order
SPREAD = 30.0  # a range reaches from the default divided by SPREAD to the default times SPREAD
DIGITS = 6


@dataclass(frozen=True)
class Range:
    """A positive number between low and high, uniform on a log scale."""

    low: float
    high: float

    def at(self, share: float) -> float:
        """The value at a share in [0, 1] of the range, to six digits."""
        return significant(self.low * (self.high / self.low) ** share)

    def share(self, value: float) -> float:
        """The inverse of `at`."""
        return math.log(self.clip(value) / self.low) / math.log(self.high / self.low)

    def clip(self, value: float) -> float:
        """The value, or the end of the range that it lies beyond."""
        return min(max(value, self.low), self.high)

    def record(self) -> list:
        """As it is written to JSON."""
        return [self.low, self.high, "log"]


@dataclass(frozen=True)
class Choice:
    """One of several values in order; any other value is taken as the one at `nearest`."""

    values: tuple
    nearest: int = 0

    def at(self, share: float) -> Any:
        """The value whose part of [0, 1] holds the share."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def index(self, value: Any) -> int:
        """The place of a value."""
        return self.values.index(value) if value in self.values else self.nearest

    def record(self) -> dict:
        """As it is written to JSON."""
        return {"choices": list(self.values), "nearest": self.nearest}


Space = dict[str, Range | Choice]


def around(default: float, low: float = 0.0, high: float = math.inf) -> Range:
    """The range of an axis with this default, within its legal values."""
    return Range(max(default / SPREAD, low), min(default * SPREAD, high))


def axis_of(record: list | dict) -> Range | Choice:
    """An axis from its JSON."""
    if isinstance(record, dict):
        return Choice(tuple(record["choices"]), record["nearest"])
    return Range(*record[:2])


def significant(value: float) -> float:
    """A number to six digits: what the config says is what ran."""
    return float(f"{value:.{DIGITS}g}")
