"""Does Lion's loss fluctuate two to three times as much as AdamW's?"""

import itertools
import math
from collections.abc import Iterable

from exp.report.rows import Row, Rows
from exp.report.statistics import mean
from exp.report.tables import interval
from exp.theory import sweeps
from exp.theory.statement import Verdict, verdict

RULES = {"AdamW": (sweeps.adamw, 2**-7), "Lion": (sweeps.lion, 2**-10)}
GRID = {"optimizer": RULES}


def measure(seeds: list[int], optimizer: str) -> Iterable[Row]:
    """The grid, and the fixed batch's loss after every step at its best rate."""
    return sweeps.race(*RULES[optimizer], seeds, every=1)


def fluctuation(losses: list[float]) -> float:
    """Root mean square change from point to point over the second half, nats."""
    changes = [b - a for a, b in itertools.pairwise(losses[len(losses) // 2:])]
    return math.sqrt(sum(change**2 for change in changes) / len(changes))


def fluctuations(rows: Rows) -> dict[str, list[float]]:
    """Optimizer -> fluctuation of each seed."""
    return {name: list(map(fluctuation, curves)) for name, curves in sweeps.curves_of(rows).items()}


def ratios(rows: Rows) -> list[float]:
    """Lion's fluctuation over AdamW's, seed by seed."""
    by_name = fluctuations(rows)
    return [a / b for a, b in zip(by_name["Lion"], by_name["AdamW"], strict=True)]


def judge(rows: Rows) -> Verdict:
    """By the ratio of fluctuations."""
    ratio = mean(ratios(rows))
    return verdict(ratio.value >= 2, ratio.value >= 1.2, f"{interval(ratio)} times AdamW's")


def tables(rows: Rows) -> dict:
    """Rates, losses and fluctuations."""
    curves, grids = sweeps.curves_of(rows), sweeps.grids_of(rows)
    return {"ratio": interval(mean(ratios(rows))), "fluctuations": [
        ("rule", "best lr", "final loss", "fluctuation (nats)"),
        *((name, sweeps.best_of_grid(grids[name]), [losses[-1] for losses in curves[name]], values)
          for name, values in fluctuations(rows).items())]}
