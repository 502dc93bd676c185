"""Times of several functions, interleaved in one process; only their ratios are meaningful."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

WARM_UP = 2
PATIENCE = 5.0  # seconds; a slower function is warmed up once and timed FEW times
FEW = 3

K = TypeVar("K")
CLOCKS = {"wall": time.perf_counter, "thread": time.thread_time}


def interleaved(
    functions: Mapping[K, Callable[[], object]], rounds: int, clock: str = "wall",
    patience: float = PATIENCE
) -> dict[K, list[float | None]]:
    """Seconds of every function in every round, None where it was left out. Each round has its own
    random order, because a small call may be slower after certain others.

    clock: "wall", or "thread", the processor time of this thread, for one thread on a machine that
    is shared. patience: seconds; a slower function is timed FEW times.
    """
    seconds: dict[K, list[float | None]] = {name: [None] * rounds for name in functions}
    slow: set[K] = set()
    orders, order = random.Random(0), list(functions)
    for round_ in range(-WARM_UP, rounds):
        orders.shuffle(order)
        for name in order:
            if name in slow and not 0 <= round_ < FEW:
                continue
            taken = seconds_of(functions[name], CLOCKS[clock])
            if round_ >= 0:
                seconds[name][round_] = taken
            if taken > patience:
                slow.add(name)
    return seconds


def seconds_of(function: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of one call, including the work it queues on the device."""
    started = clock()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - started


def summary(seconds: dict[str, list[float | None]], reference: str) -> dict[str, dict[str, Any]]:
    """Per name: "ms" and "ratio", time over that of `reference` in the same round, as medians with
    quartiles, and "rounds"."""
    result = {}
    for name, values in seconds.items():
        taken = [1e3 * value for value in values if value is not None]
        pairs = [a / b for a, b in zip(values, seconds[reference], strict=True)
                 if a is not None and b is not None]
        result[name] = {**spread("ms", taken), "rounds": len(taken), **spread("ratio", pairs)}
    return result


def spread(name: str, values: list[float]) -> dict[str, float]:
    """Return the median of `values` as `name` and the quartiles as <name>_low, <name>_high."""
    low, high = _quartiles(values)
    return {name: statistics.median(values), f"{name}_low": low, f"{name}_high": high}


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
