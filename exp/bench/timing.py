"""Times of several things, interleaved in one process: only their ratios mean anything."""

import statistics
import time
from collections.abc import Callable

import torch

WARM_UP = 2
PATIENCE = 5.0  # seconds: what takes longer is timed once, the others every round

CLOCKS = {"wall": time.perf_counter, "thread": time.thread_time}


def interleaved(
    functions: dict[str, Callable[[], object]], rounds: int, clock: str = "wall"
) -> dict[str, list[float | None]]:
    """Seconds of every function in every round, None where it was left out; each once a round.

    clock: "wall", or "thread", the processor time of this thread: for one thread on a machine
    that others use too.
    """
    seconds = {name: [None] * rounds for name in functions}
    too_slow: set[str] = set()
    for round_ in range(-WARM_UP, rounds):
        for name, function in functions.items():
            if name not in too_slow:
                seconds[name][max(0, round_)] = taken = seconds_of(function, CLOCKS[clock])
                if taken > PATIENCE:
                    too_slow.add(name)
    return seconds


def seconds_of(function: Callable[[], object], clock: Callable[[], float]) -> float:
    """The time of one call, the device's work included."""
    started = clock()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - started


def summary(seconds: dict[str, list[float | None]], reference: str) -> dict[str, dict[str, float]]:
    """Per name: median, quartiles (ms) and the median over rounds of this / reference."""
    result = {}
    for name, values in seconds.items():
        taken = [1e3 * value for value in values if value is not None]
        pairs = [a / b for a, b in zip(values, seconds[reference], strict=True)
                 if a is not None and b is not None]
        low, high = _quartiles(taken)
        ratio_low, ratio_high = _quartiles(pairs)
        result[name] = {
            "ms": statistics.median(taken), "ms_low": low, "ms_high": high, "rounds": len(taken),
            "ratio": statistics.median(pairs), "ratio_low": ratio_low, "ratio_high": ratio_high,
        }
    return result


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
