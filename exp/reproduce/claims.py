"""Claims and their verdicts. One rule for wins and losses:

    number ("=", "~")     holds         our value is within the tolerance of its unit
                          holds partly  it is within twice that, or our 95 % interval has two ends
                                        and contains the number
    bound (">", "<")      holds         our whole interval is beyond it
                          holds partly  our value is
    bound, test = true    holds         our whole interval is beyond it
                          inconclusive  our interval contains it
    Otherwise the claim does not hold. A milestone that no seed reached is beyond every bound.

Tolerances: 0.5 points of accuracy, 5 % of a perplexity or loss, 20 % of a number of epochs, 10 %
of a ratio, 5 points of an overhead. A number is tested at full scale only; an order or a ratio of
two of our rows also at mini scale, and the verdict is then for that scale.

The rule was written before the runs and made stricter once, after the first grokking seeds: a
number inside an interval without an upper end, as few seeds give, no longer counts.
"""

import math
from dataclasses import dataclass
from typing import Literal

from exp.report.statistics import Estimate

Verdict = Literal["holds", "holds partly", "does not hold", "inconclusive", "not yet run",
                  "cannot be tested here"]


@dataclass(frozen=True)
class Claim:
    """One number of a paper.

    table, row, measure: which runs answer it (measures.py). against: the row to compare with.
    where: levels of the table's grid that it is limited to. test: see the rule above.
    logged, log: the value in the paper's own log, and whether it is this number.
    cannot: why it is not tested here.
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
    test: bool = False
    logged: float | None = None
    log: str = ""
    cannot: str = ""

    @property
    def tolerance(self) -> float:
        """How far from a claimed number still counts as that number, in the claim's unit."""
        share = {"ppl": 0.05, "nats": 0.05, "epoch": 0.2, "epochs": 0.2, "x": 0.1}
        if self.unit in share:
            return share[self.unit] * abs(self.value)
        return 5.0 if self.measure.startswith("extra_") else 0.5


def judge(claim: Claim, ours: Estimate | None) -> Verdict:
    """The verdict on our estimate. None is "not yet run"; nan, where our runs diverged or never
    reached the milestone, does not hold (tested: inconclusive)."""
    if claim.cannot:
        return "cannot be tested here"
    if ours is None:
        return "not yet run"
    if claim.comparator == "<":
        return _judge_bound(claim, Estimate(-ours.value, -ours.high, -ours.low, ours.n),
                            -claim.value)
    if claim.comparator == ">":
        return _judge_bound(claim, ours, claim.value)
    distance = abs(ours.value - claim.value)
    if distance <= claim.tolerance:
        return "holds"
    inside = ours.low <= claim.value <= ours.high < math.inf
    return "holds partly" if inside or distance <= 2 * claim.tolerance else "does not hold"


def _judge_bound(claim: Claim, ours: Estimate, bound: float) -> Verdict:
    if ours.low > bound:
        return "holds"
    if claim.test:
        return "does not hold" if ours.high < bound else "inconclusive"
    return "holds partly" if ours.value > bound else "does not hold"
