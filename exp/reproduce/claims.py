"""Claims of a paper, and what each becomes by our runs (the rule: `exp.report.judgement`).

A number ("=", "~") counts as the claimed one within 0.5 points of accuracy, 5 % of a perplexity or
loss, 5 points of an overhead, a factor of 1.2 of a number of epochs, 1.1 of a ratio. It is judged
at full scale only; a bound (">", "<") on an order or a ratio of two of our rows also at mini scale,
and the verdict is then for that scale. The least effect worth naming is 0.5 points or 1 % of a
perplexity; of times and ratios any.
"""

import math
from dataclasses import dataclass

from exp.report.evidence import Ends, Evidence
from exp.report.judgement import (
    POINTS,
    WORTH_NAMING,
    Judgement,
    judge_above,
    judge_below,
    judge_number,
)

NOT_RUN, UNTESTABLE, WITHDRAWN = "not yet run", "cannot be tested here", "withdrawn"
FACTORS = {"epoch": 1.2, "epochs": 1.2, "x": 1.1}
SHARES = {"ppl": 0.05, "nats": 0.05}
OVERHEAD_POINTS = 5.0


@dataclass(frozen=True)
class Claim:
    """One number of a paper.

    table, row, measure: which runs answer it (measures.py). against: the row to compare with.
    where: levels of the table's grid that it is limited to. runs: how many runs the claimed number
    is the mean of. logged, log: the value in the paper's own log, and whether it is this number.
    cannot: why it is not tested here. withdrawn: why it is no claim any more, after
    "upstream: " what its authors say now.
    """

    id: str
    says: str
    comparator: str
    value: float
    unit: str
    table: str = ""
    row: str = ""
    measure: str = ""
    against: str = ""
    where: tuple[str, ...] = ()
    runs: int = 1
    logged: float | None = None
    log: str = ""
    cannot: str = ""
    withdrawn: str = ""

    @property
    def tolerance(self) -> Ends:
        """The least and the greatest number that still count as the claimed one."""
        if self.unit in FACTORS:
            return self.value / FACTORS[self.unit], self.value * FACTORS[self.unit]
        points = OVERHEAD_POINTS if self.measure.startswith("extra_") else POINTS
        distance = SHARES[self.unit] * abs(self.value) if self.unit in SHARES else points
        return self.value - distance, self.value + distance

    def floor(self, reference: float) -> float:
        """The least effect worth naming; reference: the size of what is compared, if it has one."""
        if self.unit in SHARES:
            return WORTH_NAMING * max(abs(self.value), reference)
        return 0.0 if self.unit in FACTORS else POINTS


def judge(claim: Claim, ours: Evidence | None) -> Judgement:
    """The verdict on what we measured, None where nothing was run."""
    if claim.withdrawn:
        now = claim.withdrawn.removeprefix("upstream: ")
        return Judgement(WITHDRAWN + " upstream" * (now != claim.withdrawn), why=now)
    if claim.cannot:
        return Judgement(UNTESTABLE, why=claim.cannot)
    if ours is None:
        return Judgement(NOT_RUN)
    if claim.comparator in "<>":
        beyond = judge_above if claim.comparator == ">" else judge_below
        return beyond(ours, claim.value, claim.floor(ours.reference))
    found = judge_number(ours, claim.value, claim.tolerance, claim.runs)
    if found.word != "does not hold" or math.isnan(ours.value):
        return found
    return Judgement(found.word, found.p, why="ours is higher" if ours.value > claim.value
                     else "ours is lower")
