"""Does Lookahead reduce the sensitivity to the learning rate?"""

import math
from collections.abc import Iterable, Sequence

from exp.report.evidence import sample
from exp.report.judgement import judge_above, judge_all
from exp.report.rows import Row, Rows
from exp.report.tables import interval
from exp.theory import sweeps
from exp.theory.statement import Verdict

NEAR = 0.1  # nats
LEAST = 0.1  # smallest relevant difference in doublings
POINTS = 9  # number of rates of the grid, a factor of two apart
RULES = {"SGD with momentum": (sweeps.sgd, 2**-6), "AdamW": (sweeps.adamw, 2**-11)}
WITH: dict[str, dict] = {"without": {}, "with": {"lookahead": {}}}
GRID = {"optimizer": RULES, "lookahead": WITH}
KEYS = ("optimizer", "lookahead", "lr")


def measure(seeds: list[int], optimizer: str, lookahead: str) -> Iterable[Row]:
    """Return the grid of one optimizer, with or without Lookahead."""
    rule, start = RULES[optimizer]
    losses: sweeps.Grid = {
        lr: [sweeps.curve({**rule(lr), **WITH[lookahead]}, seed)[-1] for seed in seeds]
        for lr in (start * 2.0**n for n in range(POINTS))}
    return sweeps.grid_rows(losses, seeds)


def doublings(rates: list[float], losses: Sequence[float], level: float) -> float:
    """Return the total length in log2(lr) of intervals with a loss of at most `level`, interpolated
    linearly; intervals beside an infinite loss do not count."""
    length = 0.0
    for i in range(len(rates) - 1):
        low, high = sorted((losses[i], losses[i + 1]))
        if not math.isfinite(high) or low > level:
            continue
        share = 1.0 if high <= level else (level - low) / (high - low)
        length += share * math.log2(rates[i + 1] / rates[i])
    return length


def widths(grids: dict[str, sweeps.Grid]) -> dict[str, list[float]]:
    """Map "without" and "with" to the doublings per seed."""
    by_seed = {name: list(zip(*([math.inf if v is None else v for v in row]
                                for row in grid.values()), strict=True))
               for name, grid in grids.items()}
    levels = [min(map(min, losses)) + NEAR for losses in zip(*by_seed.values(), strict=True)]
    return {name: [doublings(list(grids[name]), losses, level)
                   for losses, level in zip(of_seeds, levels, strict=True)]
            for name, of_seeds in by_seed.items()}


def judge(rows: Rows) -> Verdict:
    """Judge per optimizer by the additional doublings with Lookahead."""
    more = {name: sample([a - b for a, b in zip(by["with"], by["without"], strict=True)])
            for name, by in ((name, widths(grids)) for name, grids in rows.tree(*KEYS).items())}
    return Verdict(
        judge_all([judge_above(doublings, 0.0, LEAST) for doublings in more.values()]),
        "doublings of lr that Lookahead adds: " + ", ".join(
            f"{interval(doublings.estimate)} ({name})" for name, doublings in more.items()))


def tables(rows: Rows) -> dict:
    """Return a table of widths, best rates and losses."""
    return {"widths": [
        ("rule", "Lookahead", "doublings within 0.1 nats", "best lr", "loss there"),
        *((name, which, values, sweeps.best_of_grid(grids[which]), sweeps.lowest(grids[which]))
          for name, grids in rows.tree(*KEYS).items() for which, values in widths(grids).items())]}


def figure(rows: Rows) -> dict:
    """Return mean loss over learning rate, with and without Lookahead: one panel per optimizer."""
    return sweeps.grids_figure(rows.tree(*KEYS), "{} Lookahead", "held-out loss (nats)")
