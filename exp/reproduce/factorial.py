"""Main effects and two-way interactions of a grid whose factors have two levels each, per row.

A row's complete seeds, those with a run in every cell, are a complete block design for the log of
a run's result (`Yardstick.result`). The error is the residual of additive seed and cell effects,
with (seeds - 1)(cells - 1) degrees of freedom, the same for every effect.
"""

from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from scipy import special

from exp.report.judgement import holm
from exp.report.statistics import LEVEL, Estimate
from exp.report.tables import interval, markdown
from exp.reproduce.measures import Runs
from exp.reproduce.plan import Table
from exp.reproduce.yardstick import Yardstick

ALPHA = 0.05
EXPLANATION = """\
Effects of the levels. One level: the {outcome} with it over the {outcome} with the factor's other \
level, as a geometric mean over the other factors and over the seeds that ran all {cells} cells; \
below 1 the level is better. Two levels (their interaction): the effect of the second with the \
first over its effect without the first; 1 if they do not interact. Brackets hold 95 % intervals; \
* marks p of at most 5 % after Holm's correction over the table. A run that {missed}; the ratio is \
then only a lower bound (≥), an upper bound (≤) or unknown (?)."""


@dataclass(frozen=True)
class Effect:
    """Effect of a level or of two levels together: ratio of results with its interval, two-sided p,
    and the mark of a bound (see `_bound`)."""

    ratio: Estimate
    p: float
    bound: str = ""


def factorial(table: Table, by: Yardstick, runs: dict[str, Runs]) -> list[str]:
    """Return the parts of a page. Empty unless the grid has two or more factors, all of two levels,
    and a row has two complete seeds. runs: row label -> its runs by seed and levels."""
    if len(table.grid) < 2 or any(len(levels) != 2 for levels in table.grid.values()):
        return []
    of_rows = {row: named for row, group in runs.items() if (named := effects(table, by, group))}
    if not of_rows:
        return []
    adjusted = iter(holm([effect.p for named in of_rows.values() for effect in named.values()]))
    cells = {row: {name: f"{effect.bound}{interval(effect.ratio)}"
                         f"{' *' * (next(adjusted) <= ALPHA and not effect.bound)}"
                   for name, effect in named.items()} for row, named in of_rows.items()}
    lines = [("", *cells), *((name, *(of_row[name] for of_row in cells.values()))
                             for name in next(iter(cells.values())))]
    explanation = EXPLANATION.format(outcome=by.outcome, missed=by.missed,
                                     cells=2 ** len(table.grid))
    return [explanation, markdown(lines)]


def effects(table: Table, by: Yardstick, runs: Runs) -> dict[str, Effect]:
    """Return the effects of the factors' second levels, then of every two of these, by name; empty
    for fewer than two complete seeds."""
    grid = list(product(*table.grid.values()))
    seeds = [seed for seed in sorted({key[0] for key in runs})
             if all((seed, *levels) in runs for levels in grid)]
    if len(seeds) < 2:
        return {}
    ran = [[runs[seed, *levels] for levels in grid] for seed in seeds]
    results = np.log([by.finite_results(of_seed) for of_seed in ran])
    missed = np.array([any(by.result(run) is None for run in cell)
                       for cell in zip(*ran, strict=True)])
    signs = np.array(list(product((-1, 1), repeat=len(table.grid)))).T  # (factors, cells)
    rest = results - results.mean(0) - results.mean(1, keepdims=True) + results.mean()
    freedom = (len(seeds) - 1) * (len(grid) - 1)
    error = float(np.sqrt((rest**2).sum() / freedom / results.size))  # of a mean of signed results

    def effect(sign: np.ndarray, size: int, bound: str) -> Effect:
        mean = float((sign * results).mean())
        half = special.stdtrit(freedom, (1 + LEVEL) / 2) * error
        value, low, high = np.exp(size * np.array([mean, mean - half, mean + half])).tolist()
        p = 2 * special.stdtr(freedom, -abs(mean) / error) if error else float(not mean)
        return Effect(Estimate(value, low, high, len(seeds)), float(p), bound)

    names = [list(levels)[1] for levels in table.grid.values()]
    named = {name: effect(sign, 2, _bound(missed[sign > 0].any(), missed[sign < 0].any()))
             for name, sign in zip(names, signs, strict=True)}
    for (first, one), (second, other) in combinations(zip(names, signs, strict=True), 2):
        named[f"{first} and {second}"] = effect(one * other, 4, "? " * bool(missed.any()))
    return named


def _bound(with_it: bool, without: bool) -> str:
    """Mark of a ratio: "≥ " or "≤ " if a run above or below the fraction line has no result, "? "
    if both, else ""."""
    if with_it and without:
        return "? "
    return "≥ " if with_it else "≤ " if without else ""
