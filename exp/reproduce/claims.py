"""Claims of a paper and the verdicts that our runs give (the rule: `exp.report.judgement`).

A number ("=", "~") equals the claimed one within 0.5 points of accuracy, 5 % of a perplexity or
loss, 5 points of an overhead, a factor of 1.2 of a number of epochs, 1.1 of a ratio. Numbers are
judged at full scale only. A bound (">", "<") on an order or a ratio of two of our rows is also
judged at mini scale, and the verdict is then for that scale. The least effect worth naming is 0.5
points or 1 % of a perplexity or loss; there is none for times and ratios.
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

    table, row, measure: the runs that decide it (measures.py). against: the row to compare with.
    where: levels of the table's grid to which it is limited. runs: number of runs over which the
    claimed number is a mean. logged, log: the value in the paper's own log, and whether it is this
    number. cannot: why it cannot be tested here. withdrawn: why it is no longer a claim; after
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
        """The least and the greatest number that count as equal to the claimed one."""
        if self.unit in FACTORS:
            return self.value / FACTORS[self.unit], self.value * FACTORS[self.unit]
        points = OVERHEAD_POINTS if self.measure.startswith("extra_") else POINTS
        distance = SHARES[self.unit] * abs(self.value) if self.unit in SHARES else points
        return self.value - distance, self.value + distance

    def floor(self, reference: float) -> float:
        """The least effect worth naming. reference: mean of the other row, 0 without one."""
        if self.unit in SHARES:
            return WORTH_NAMING * max(abs(self.value), reference)
        return 0.0 if self.unit in FACTORS else POINTS


def judge(claim: Claim, ours: Evidence | None) -> Judgement:
    """Return the verdict on a claim from our evidence, which is None if nothing was run."""
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
    verdict = judge_number(ours, claim.value, claim.tolerance, claim.runs)
    if verdict.word != "does not hold" or math.isnan(ours.value):
        return verdict
    return Judgement(verdict.word, verdict.p, why="ours is higher" if ours.value > claim.value
                     else "ours is lower")
