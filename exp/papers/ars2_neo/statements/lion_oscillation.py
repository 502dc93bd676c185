"""Does Lion's loss fluctuate two to three times as much as AdamW's?"""

import itertools
import math
from collections.abc import Iterable

from exp.report.evidence import Evidence, sample
from exp.report.judgement import judge_above
from exp.report.rows import Row, Rows
from exp.report.tables import interval
from exp.theory import sweeps
from exp.theory.statement import Verdict

RULES = {"AdamW": (sweeps.adamw, 2**-7), "Lion": (sweeps.lion, 2**-10)}
GRID = {"optimizer": RULES}
TIMES = 2.0


def measure(seeds: list[int], optimizer: str) -> Iterable[Row]:
    """Return the grid, and the loss of a fixed batch after every step at the best rate."""
    return sweeps.race(*RULES[optimizer], seeds, every=1)


def fluctuation(losses: list[float]) -> float:
    """Return the root mean square change between points over the second half (nats)."""
    changes = [b - a for a, b in itertools.pairwise(losses[len(losses) // 2:])]
    return math.sqrt(sum(change**2 for change in changes) / len(changes))


def fluctuations(rows: Rows) -> dict[str, list[float]]:
    """Map each optimizer to the fluctuation per seed."""
    return {name: list(map(fluctuation, curves)) for name, curves in sweeps.curves_of(rows).items()}


def ratio_of(rows: Rows) -> Evidence:
    """Return Lion's fluctuation over AdamW's, paired by seed."""
    by_name = fluctuations(rows)
    return sample([a / b for a, b in zip(by_name["Lion"], by_name["AdamW"], strict=True)], log=True)


def judge(rows: Rows) -> Verdict:
    """Judge by the ratio of fluctuations."""
    ratio = ratio_of(rows)
    return Verdict(judge_above(ratio, TIMES), 
                   f"Lion's fluctuation is {interval(ratio.estimate)} times AdamW's")


def tables(rows: Rows) -> dict:
    """Return a table of rates, losses and fluctuations."""
    curves, grids = sweeps.curves_of(rows), sweeps.grids_of(rows)
    return {"ratio": interval(ratio_of(rows).estimate), "fluctuations": [
        ("rule", "best lr", "final loss", "fluctuation (nats)"),
        *((name, sweeps.best_of_grid(grids[name]), [losses[-1] for losses in curves[name]], values)
          for name, values in fluctuations(rows).items())]}
