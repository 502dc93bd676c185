"""Speed-ups over AdamW: the steps that tuned AdamW needs for another arm's loss, and two figures.

Tuned AdamW at several numbers of steps, on the same seeds, gives a curve, a + b steps^-c. An arm's
loss is the curve's at the steps of the scoring runs plus the mean of the paired differences from
AdamW, whose 95 % interval is mapped through the curve. The uncertainty of the curve itself is
ignored.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from exp.papers.ladder import ranking
from exp.report.canvas import canvas, curves, styles
from exp.report.rows import Rows
from exp.report.statistics import Estimate
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
        """Fit the curve to the completed runs of a rung, on the seeds that all numbers of steps
        have. None with fewer than four numbers of steps, without scoring runs or such seeds, or if
        no falling curve fits."""
        points: dict[int, Scores] = {}
        scored = set()  # steps
        for row in rows.where(optimizer="adamw"):
            if row["part"] in ("scoring", "horizons") and row.value is not None:
                points[row["steps"]] = {**points.get(row["steps"], {}), row.seed: row.value}
                scored |= {row["steps"]} if row["part"] == "scoring" else set()
        if len(points) < FEWEST_HORIZONS or len(scored) != 1:
            return None
        seeds = set.intersection(*map(set, points.values()))
        if not seeds:
            return None
        try:
            curve = ranking.fit_horizons(list(points), [
                float(np.mean([of[seed] for seed in seeds])) for of in points.values()])
        except ValueError:
            return None
        return cls(curve, scored.pop(), min(points), max(points))

    def speed_up(self, ours: Scores, adamw: Scores) -> Estimate:
        """Return the steps that AdamW needs for the arm's loss, divided by the arm's steps. An arm
        with a diverged (infinite) run is taken at its median, without an interval."""
        return self._ratio(_difference(ours, adamw), 0.0)

    def ratio(self, ours: Scores, other: Scores, adamw: Scores) -> Estimate:
        """Return the steps that AdamW needs for one arm's loss, divided by those for another's. The
        interval is that of the paired differences of the two."""
        return self._ratio(_difference(ours, other), _difference(other, adamw).value)

    def _ratio(self, difference: Estimate, above: float) -> Estimate:
        """Return the ratio of AdamW's steps to two losses, the second `above` AdamW's, in bits per
        byte, and the first `difference` from the second."""
        a, b, c = self.curve
        baseline = a + b * self.steps**-c + above
        steps = ranking.steps_equivalent(baseline, self.curve)
        value, low, high = (
            math.nan if math.isnan(d) else
            ranking.steps_equivalent(baseline + d, self.curve) / steps
            for d in (difference.value, difference.high, difference.low))
        return Estimate(value, low, high, difference.n)

    def in_words(self, speed: Estimate) -> str:
        """Return the speed-up as text, marked if it is outside the range of AdamW's steps."""
        outside = not self.least <= speed.value * self.steps <= self.most
        return interval(speed) + " (extrapolated)" * outside


def _difference(ours: Scores, other: Scores) -> Estimate:
    """Return the mean of the paired differences with its interval; of the medians, without an
    interval, if a run diverged."""
    if all(map(math.isfinite, (*ours.values(), *other.values()))):
        return ranking.paired_difference(ours, other)
    difference = ranking.score(list(ours.values())) - ranking.score(list(other.values()))
    return Estimate(difference, math.nan, math.nan, len(ours))


def muons_speed(speeds: Mapping[str, Estimate], needed: int) -> list[tuple]:
    """Return the table lines of H6 and H7 from Muon's speed-up per rung, smallest rung first.
    Neither is tested on fewer rungs than `needed`."""
    low, high = LIKELY
    values = [speed.value for speed in speeds.values()]
    by_rung = ", ".join(f"{rung} {interval(speed)}" for rung, speed in speeds.items())
    likely = all(low <= value <= high for value in values)
    falls = all(a > b for a, b in pairwise(values))
    missing = so_far(len(values), needed, "sizes") + f": {by_rung}" * bool(values)
    return [(name, declared, f"{verdict(holds)}: {by_rung}" if len(values) >= needed else missing)
            for name, declared, holds in (
                ("H6: Muon's speed-up over AdamW at every size", f"in [{low}, {high}]", likely),
                ("H7: it falls with size", "falls", falls))]


def so_far(there: int, declared: int, what: str) -> str:
    """Return the result of a hypothesis without enough runs as text."""
    return f"not tested: {there} of {declared} {what} so far"


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
    """Draw the learning-rate sensitivity, each arm's best tuning score per rate at the steps of the
    scoring runs, with one panel per rung. Return whether there was anything to draw."""
    panels: dict[str, dict[str, tuple]] = {}
    for rung, arms in rows.where(part="tuning", horizon=1).tree(
            "rung", "optimizer", "rate").items():
        for arm, rates in arms.items():
            best = {rate: min(v for v in values if v is not None)
                    for rate, values in sorted(rates.items()) if any(v is not None for v in values)}
            panels.setdefault(rung, {})[arm] = (list(best), list(best.values()))
    if panels:
        curves(path, panels, xlabel="learning rate of the matrices", ylabel="bits per byte",
               xscale="log", title="The best run of the tuning at every rate")
    return bool(panels)
