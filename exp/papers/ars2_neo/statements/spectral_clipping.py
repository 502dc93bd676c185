"""Is Muon faster or more stable if it clips singular values instead of setting them to 1?"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace

from exp.report.evidence import sample
from exp.report.judgement import INCONCLUSIVE, Judgement, judge_above, judge_all, judge_any
from exp.report.rows import Row, Rows
from exp.report.tables import interval
from exp.theory import sweeps
from exp.theory.statement import Verdict

GUESS = 7.0  # nats
SLOWER, LOWER = 1.10, 0.5  # times the steps; doublings of the rate
# Optimizer -> keys that replace Muon's, and the first learning rate of its grid.
RULES: dict[str, tuple[dict, float]] = {"Muon": ({}, 2**-5)} | {
    f"clip to [{smin:g}, 1]": ({"name": "spectral_clip_muon", "smin": smin}, 2**-4)
    for smin in (0.01, 0.1, 0.5)}
GRID = {"optimizer": RULES}


def measure(seeds: list[int], optimizer: str) -> Iterable[Row]:
    """Return the rows of `race` in exp.theory.sweeps."""
    keys, start = RULES[optimizer]
    return sweeps.race(lambda lr: {**sweeps.muon(lr), **keys}, start, seeds)


def judge(rows: Rows) -> Verdict:
    """Judge by the speed and the headroom of each clip compared with Muon."""
    curves, grids = sweeps.curves_of(rows), sweeps.grids_of(rows)
    base, plain = curves.pop("Muon"), grids["Muon"]
    ratios = {name: sweeps.slowdown(base, losses) for name, losses in curves.items()}
    return Verdict(
        judge_any([judge_all([judge_above(ratio, SLOWER), judge_steady(grids[name], plain)])
                   for name, ratio in ratios.items()]),
        "additional steps that Muon needs: " + ", ".join(
            f"{interval(sweeps.percent_more(ratio))} % ({name})"
            for name, ratio in ratios.items())
        + "; even the highest rates of the grids train" * all(
            map(math.isinf, itertools.chain.from_iterable(map(headroom, grids.values())))))


def judge_steady(grid: sweeps.Grid, plain: sweeps.Grid) -> Judgement:
    """Judge whether a grid has as much headroom as the plain one."""
    verdict = judge_above(sample([a - b for a, b in zip(headroom(grid), headroom(plain),
                                                        strict=True)]), -LOWER)
    if verdict.word == INCONCLUSIVE and math.inf in headroom(grid) and math.inf in headroom(plain):
        return replace(verdict, needed=None, why="no rate was high enough to fail")
    return verdict


def headroom(grid: sweeps.Grid) -> list[float]:
    """Return per seed the doublings from the grid's best rate to its highest that trains; infinity
    if that is the highest rate of the grid."""
    top, best = max(grid), sweeps.best_of_grid(grid)
    highest = [max((lr for lr, loss in zip(grid, losses, strict=True)
                    if loss is not None and loss < GUESS), default=best)
               for losses in zip(*grid.values(), strict=True)]
    return [math.inf if lr == top else math.log2(lr / best) for lr in highest]


def tables(rows: Rows) -> dict:
    """Return a table of rates, losses and the speed-up."""
    return {"race": sweeps.race_table(rows)}
