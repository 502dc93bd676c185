"""What each part of ARS2-Neo buys, on the board of an ablation.

A part is a level of a factor against the factor's first level, in all pairs of cells that agree in
the rest. Its value in a study is the mean over pairs of the difference of the study's values (logs
of a cost or of a metric), so that studies, not pairs, which share runs, are the sample: Student's t
over K studies. A part of whose cells one missed the target is a bound, and not judged against it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from exp.report.evidence import sample
from exp.report.judgement import holm
from exp.report.statistics import Estimate
from exp.report.tables import interval, markdown, number
from exp.tune.cells import Ablation, arm_name
from exp.tune.estimate import OPPOSITE

EXPLANATION = """\
Cost or metric with the part over that without it, geometric mean over all pairs of cells that agree
in the rest; below 1 the part pays. 95 % intervals over studies, p values by Holm over the parts; ≥
and ≤ where a cell with, without the part missed the target."""
BOUND = {(True, False): "at least", (False, True): "at most", (True, True): "unknown"}


@dataclass(frozen=True)
class Effect:
    """Of a part: pairs of cells, the ratio with its 95 % interval, on which side it is a bound
    ("", "at least", "at most", "unknown"), two-sided p, Holm's p over all parts."""

    part: str
    pairs: int
    ratio: Estimate
    bound: str
    p: float
    p_holm: float = 1.0

    def verdict(self, alpha: float) -> str:
        """ "pays", "costs" or "undecided"."""
        side = "cheaper" if self.ratio.value < 1 else "dearer"
        if not self.p_holm <= alpha or self.bound in ("unknown", OPPOSITE[side]):
            return "undecided"
        return "pays" if side == "cheaper" else "costs"


def pairs(ablation: Ablation, factor: str, level: str) -> list[tuple[str, str]]:
    """(with, without): arms whose cells differ in this part alone. A cell that borrows the runs of
    another level shows nothing of its own; the same two arms are paired once."""
    first = next(iter(ablation.factors[factor]))
    found: dict[tuple[str, str], None] = {}
    for cell in ablation.cells():
        if cell[factor] == level:
            ran = [ablation.run_as(one) for one in (cell, {**cell, factor: first})]
            if [one[factor] for one in ran] == [level, first]:
                found[arm_name(ran[0]), arm_name(ran[1])] = None
    return list(found)


def effects(board: dict, ablation: Ablation) -> list[Effect]:
    """Every part of which all cells are on a board of at least two studies."""
    rows = board["results"]["arms"]
    made = []
    for factor, levels in ablation.factors.items():
        for level in list(levels)[1:]:
            cells = pairs(ablation, factor, level)
            if cells and all(name in rows for pair in cells for name in pair):
                values, missed = ([np.array([rows[name][key] for name in side])
                                   for side in zip(*cells, strict=True)]
                                  for key in ("values", "censored"))
                d = (values[0] - values[1]).mean(0)
                ratio = sample(np.exp(d), log=True).estimate
                p = float(stats.ttest_1samp(d, 0.0).pvalue) if np.ptp(d) else float(not d.any())
                bound = BOUND.get((bool(missed[0].any()), bool(missed[1].any())), "")
                made.append(Effect(f"{factor}: {level}", len(cells), ratio, bound, p))
    adjusted = holm([effect.p for effect in made])
    return [Effect(e.part, e.pairs, e.ratio, e.bound, e.p, p)
            for e, p in zip(made, adjusted, strict=True)]


def section(board: dict, ablation: Ablation, sign: Callable[[str], str]) -> tuple[str, ...]:
    """The table of the page; sign: of a bound."""
    found = effects(board, ablation)
    if not found:
        return ()
    lines = [("part", "times", "pairs of cells", "p", "verdict")]
    lines += [(effect.part, sign(effect.bound) + interval(effect.ratio), str(effect.pairs),
               number(effect.p_holm), effect.verdict(board["terms"]["alpha"])) for effect in found]
    return "## Part by part", EXPLANATION, markdown(lines)
