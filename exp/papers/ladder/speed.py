"""Speed-ups over AdamW: the steps that its winner needs for another arm's loss, and two figures.

AdamW's winner at several numbers of steps gives a curve, a + b steps^-c. An arm's loss is AdamW's
mean plus the mean of the paired differences, whose 95 % interval is carried through the curve; the
curve itself counts as known.
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
    """AdamW at one rung. curve: (a, b, c); steps: those of the scores; least, most: the curve's."""

    curve: tuple[float, float, float]
    steps: int
    least: int
    most: int

    @classmethod
    def of(cls, rows: Rows) -> "Horizons | None":
        """From a rung's rows; None with fewer than four numbers of steps."""
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
        """The steps that AdamW needs for the arm's loss over the arm's own."""
        difference, _ = paired(dict(ours), dict(adamw))
        home = float(np.mean(list(adamw.values())))
        value, low, high = (
            math.nan if math.isnan(d) else
            ranking.steps_equivalent(home + d, self.curve) / self.steps
            for d in (difference.value, difference.high, difference.low))
        return Estimate(value, low, high, difference.n)

    def in_words(self, speed: Estimate) -> str:
        """The speed-up; marked where AdamW was never run for so few or so many steps."""
        outside = not self.least <= speed.value * self.steps <= self.most
        return interval(speed) + " (extrapolated)" * outside


def muons_speed(speeds: Mapping[str, Estimate]) -> list[tuple]:
    """Lines of the table of hypotheses: H6 and H7, from Muon's speed-up by rung, smallest first."""
    low, high = LIKELY
    values = [speed.value for speed in speeds.values()]
    found = ", ".join(f"{rung} {interval(speed)}" for rung, speed in speeds.items())
    likely = all(low <= value <= high for value in values)
    lines = [("H6: Muon's speed-up over AdamW at every size", f"in [{low}, {high}]",
              f"{verdict(likely)}: {found}" if values else "not tested: no horizons of AdamW")]
    falls = all(a > b for a, b in zip(values, values[1:], strict=False))
    return [*lines, ("H7: it falls with size", "falls",
                     f"{verdict(falls)}: {found}" if len(values) > 1 else
                     f"not tested: {len(values)} of at least 2 sizes")]


def verdict(holds: bool) -> str:
    """A hypothesis in one word."""
    return "holds" if holds else "fails"


def draw_speeds(path: Path, speeds: Mapping[str, Mapping[int, Estimate]]) -> bool:
    """The speed-ups over the size; speeds: arm -> parameters -> speed-up. False without any."""
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
    """Learning-rate sensitivity: of each arm's tuning the best score at every rate, a panel a rung.
    False without any."""
    panels: dict[str, dict[str, tuple]] = {}
    for rung, arms in rows.where(part="tuning").tree("rung", "optimizer", "rate").items():
        for arm, rates in arms.items():
            kept = {rate: min(v for v in values if v is not None)
                    for rate, values in sorted(rates.items()) if any(v is not None for v in values)}
            panels.setdefault(rung, {})[arm] = (list(kept), list(kept.values()))
    if panels:
        curves(path, panels, xlabel="learning rate of the matrices", ylabel="bits per byte",
               xscale="log", title="The best run of the tuning at every rate")
    return bool(panels)
