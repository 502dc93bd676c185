"""Speed-ups over AdamW: the steps that tuned AdamW needs for another arm's loss, and two figures.

Tuned AdamW at several numbers of steps gives a curve, a + b steps^-c. An arm's loss is AdamW's mean
plus the mean of the paired differences, whose 95 % interval is mapped through the curve. The
uncertainty of the curve itself is ignored.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exp.papers.ladder import ranking
from exp.report.canvas import canvas, curves, styles
from exp.report.rows import Rows
from exp.report.statistics import Estimate, paired
from exp.report.tables import interval

FEWEST_HORIZONS = 4
LIKELY = (1.3, 1.8)  # H6: Muon's speed-up

Scores = Mapping[int, float]  # seed -> bits per byte


@dataclass(frozen=True)
class Horizons:
    """AdamW at one rung. curve: (a, b, c); steps: of the scoring runs; least, most: range of steps
    to which the curve was fitted."""

    curve: tuple[float, float, float]
    steps: int
    least: int
    most: int

    @classmethod
    def of(cls, rows: Rows) -> "Horizons | None":
        """Fit the curve to a rung's rows; None with fewer than four numbers of steps."""
        points: dict[int, list[float]] = {}
        for row in rows.where(optimizer="adamw"):
            if row["part"] in ("scoring", "horizons") and row.value is not None:
                points.setdefault(row["steps"], []).append(row.value)
        if len(points) < FEWEST_HORIZONS:
            return None
        (steps,) = rows.where(optimizer="adamw", part="scoring").levels("steps")
        curve = ranking.fit_horizons(list(points), [float(np.mean(of)) for of in points.values()])
        return cls(curve, steps, min(points), max(points))

    def speed_up(self, ours: Scores, adamw: Scores) -> Estimate:
        """Return the steps that AdamW needs for the arm's loss, divided by the arm's steps."""
        difference, _ = paired(dict(ours), dict(adamw))
        baseline = float(np.mean(list(adamw.values())))
        value, low, high = (
            math.nan if math.isnan(d) else
            ranking.steps_equivalent(baseline + d, self.curve) / self.steps
            for d in (difference.value, difference.high, difference.low))
        return Estimate(value, low, high, difference.n)

    def in_words(self, speed: Estimate) -> str:
        """Return the speed-up as text, marked if it is outside the range of AdamW's steps."""
        outside = not self.least <= speed.value * self.steps <= self.most
        return interval(speed) + " (extrapolated)" * outside


def muons_speed(speeds: Mapping[str, Estimate]) -> list[tuple]:
    """Return the table lines of H6 and H7 from Muon's speed-up per rung, smallest rung first."""
    low, high = LIKELY
    values = [speed.value for speed in speeds.values()]
    by_rung = ", ".join(f"{rung} {interval(speed)}" for rung, speed in speeds.items())
    likely = all(low <= value <= high for value in values)
    lines = [("H6: Muon's speed-up over AdamW at every size", f"in [{low}, {high}]",
              f"{verdict(likely)}: {by_rung}" if values else "not tested: no horizons of AdamW")]
    falls = all(a > b for a, b in zip(values, values[1:], strict=False))
    return [*lines, ("H7: it falls with size", "falls",
                     f"{verdict(falls)}: {by_rung}" if len(values) > 1 else
                     f"not tested: {len(values)} of at least 2 sizes")]


def verdict(holds: bool) -> str:
    """Return "holds" or "fails"."""
    return "holds" if holds else "fails"


def draw_speeds(path: Path, speeds: Mapping[str, Mapping[int, Estimate]]) -> bool:
    """Draw speed-ups over model size; speeds: arm -> parameters -> speed-up. Return whether there
    was anything to draw."""
    if not speeds:
        return False
    style = styles(speeds)
    with canvas(path, panel=(6.5, 4.2), title="Speed-up over AdamW") as ((axes,),):
        for arm, of_size in speeds.items():
            ends = np.array([(speed.value - speed.low, speed.high - speed.value)
                             for speed in of_size.values()]).T
            axes.errorbar(list(of_size), [speed.value for speed in of_size.values()],
                          yerr=np.nan_to_num(ends), capsize=2, **style[arm])
        axes.set(xscale="log", yscale="log", xlabel="parameters",
                 ylabel="AdamW's steps to the same loss / steps")
    return True


def draw_rates(path: Path, rows: Rows) -> bool:
    """Draw the learning-rate sensitivity, each arm's best tuning score per rate, with one panel per
    rung. Return whether there was anything to draw."""
    panels: dict[str, dict[str, tuple]] = {}
    for rung, arms in rows.where(part="tuning").tree("rung", "optimizer", "rate").items():
        for arm, rates in arms.items():
            best = {rate: min(v for v in values if v is not None)
                    for rate, values in sorted(rates.items()) if any(v is not None for v in values)}
            panels.setdefault(rung, {})[arm] = (list(best), list(best.values()))
    if panels:
        curves(path, panels, xlabel="learning rate of the matrices", ylabel="bits per byte",
               xscale="log", title="The best run of the tuning at every rate")
    return bool(panels)
