"""The effect of each part of ARS2-Neo, estimated on the board of an ablation.

A part is a level of a factor, compared with the factor's first level in all pairs of cells that
agree in the other factors. Its value in a study is the mean over pairs of the difference of the
cells' values (logs of a cost or of a metric). Pairs share runs, so the sample is the studies:
Student's t over K studies. If a cell missed the target, the ratio is only a bound, and a verdict
that the true ratio could overturn is not given.
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
from exp.tune.inference import bound

EXPLANATION = """\
*Times* is the cost (or metric) with the part over that without it, as a geometric mean over all
pairs of cells that differ in this part alone; below 1 the part pays. Intervals are 95 % over
studies, and p values have Holm's correction over the parts. ≥ marks a lower bound, where a cell
with the part missed the target; ≤ marks an upper bound, where a cell without it did."""


@dataclass(frozen=True)
class Effect:
    """The effect of a part. pairs: number of pairs of cells. ratio: with over without the part, and
    its 95 % interval. bound: the kind of bound that the ratio is ("" for none, "at least",
    "at most", "unknown"). p: two-sided. p_holm: p after Holm over all parts."""

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
    """Return pairs (with, without) of arms whose cells differ in this part alone, each pair once.
    Cells that use the runs of another level of the factor are left out."""
    first = next(iter(ablation.factors[factor]))
    arms: dict[tuple[str, str], None] = {}
    for cell in ablation.cells():
        if cell[factor] == level:
            ran = [ablation.run_as(one) for one in (cell, {**cell, factor: first})]
            if [one[factor] for one in ran] == [level, first]:
                arms[arm_name(ran[0]), arm_name(ran[1])] = None
    return list(arms)


def effects(board: dict, ablation: Ablation) -> list[Effect]:
    """Return the effect of every part whose cells are all on the board. It needs two studies."""
    rows = board["results"]["arms"]
    parts = []
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
                parts.append(Effect(f"{factor}: {level}", len(cells), ratio, bound(
                    bool(missed[0].any()), bool(missed[1].any())), p))
    adjusted = holm([effect.p for effect in parts])
    return [Effect(e.part, e.pairs, e.ratio, e.bound, e.p, p)
            for e, p in zip(parts, adjusted, strict=True)]


def section(board: dict, ablation: Ablation, sign: Callable[[str], str]) -> tuple[str, ...]:
    """Return the parts of the page's section: heading, explanation, table, cells that are known
    rules; empty without effects. sign: text of a bound."""
    parts = effects(board, ablation)
    if not parts:
        return ()
    lines = [("part", "times", "pairs of cells", "p", "verdict")]
    lines += [(effect.part, sign(effect.bound) + interval(effect.ratio), str(effect.pairs),
               number(effect.p_holm), effect.verdict(board["terms"]["alpha"])) for effect in parts]
    known = {name: ablation.known_as(cell) for name, cell in ablation.arms().items()
             if cell["sharpness"] == "none"}
    rules = ", ".join(f"{name} is {rule}" for name, rule in known.items() if rule)
    return "## Part by part", EXPLANATION, markdown(lines), f"Known rules: {rules}." * bool(rules)
