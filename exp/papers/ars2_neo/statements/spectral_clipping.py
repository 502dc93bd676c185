"""Is Muon faster, or steadier, when it clips singular values and does not make them equal?"""

import math
from collections.abc import Iterable

from exp.report.rows import Row, Rows
from exp.theory import sweeps
from exp.theory.statement import Verdict, verdict

GUESS = 7.0  # nats
# Optimizer -> keys over Muon's, and where its grid begins.
RULES = {"Muon": ({}, 2**-5)} | {
    f"clip to [{smin:g}, 1]": ({"name": "spectral_clip_muon", "smin": smin}, 2**-4)
    for smin in (0.01, 0.1, 0.5)}
GRID = {"optimizer": RULES}


def measure(seeds: list[int], optimizer: str) -> Iterable[Row]:
    """The race of exp.theory.sweeps."""
    keys, start = RULES[optimizer]
    return sweeps.race(lambda lr: {**sweeps.muon(lr), **keys}, start, seeds)


def judge(rows: Rows) -> Verdict:
    """By the clip with the largest gain over Muon."""
    curves, grids = sweeps.curves_of(rows), sweeps.grids_of(rows)
    base = curves.pop("Muon")
    gains = {name: sweeps.average(sweeps.speedups(base, losses))
             for name, losses in curves.items()}
    best = max(gains, key=gains.get)
    steady = headroom(grids[best]) >= headroom(grids["Muon"])
    return verdict(
        gains[best] >= 0.10 and steady, gains[best] >= 0.02, "Muon needs more steps by: "
        + ", ".join(f"{100 * gain:+.0f} % ({name})" for name, gain in gains.items()))


def headroom(grid: sweeps.Grid) -> float:
    """Doublings from the best rate of a grid to its highest that trains."""
    trains = [lr for lr, losses in grid.items() if None not in losses and max(losses) < GUESS]
    return math.log2(max(trains) / sweeps.best_of_grid(grid))


def tables(rows: Rows) -> dict:
    """Rates, losses and the speed-up."""
    return {"race": sweeps.race_table(rows)}
