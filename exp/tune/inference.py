"""Statistics of a board: intervals, tests, multiple-comparison corrections, the budget ladder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

EQUAL = 0.05  # equal: the 90 % interval of the ratio lies within 1 +- 5 %
PRIOR = 0.25  # of the e-value: prior variance of the standardized effect, in studies
TINY = 1e-300  # floor of a variance, for studies with equal values
# Of `studies_needed`: normal quantiles of a two-sided 5 % test and of 80 % power; ratio to detect.
POWER, NEEDED_RATIO = (1.959964, 0.841621), 1.1


@dataclass(frozen=True)
class Ladder:
    """The tuned baseline at several budgets. logs: log(budget / horizon), increasing. differences:
    its log metric minus that at the horizon, decreasing."""

    logs: list[float]
    differences: list[float]

    @classmethod
    def of(cls, terms: dict, values: dict[str, list[float]]) -> "Ladder | None":
        """Return the ladder of a board. None in a race, where a rung is missing, and where the
        metric does not improve from rung to rung. values: arm -> value of each study."""
        shares = {terms["baseline"]: 1.0, **terms.get("ladder", {})}
        if len(shares) == 1 or not shares.keys() <= values.keys():
            return None
        rungs = sorted((math.log(share), float(np.mean(values[name])))
                       for name, share in shares.items())
        home = float(np.mean(values[terms["baseline"]]))
        differences = [mean - home for _, mean in rungs]
        falling = all(a > b for a, b in zip(differences, differences[1:], strict=False))
        return cls([log for log, _ in rungs], differences) if falling else None

    def budget(self, difference: float) -> float:
        """Return the share of the horizon at which the baseline's log metric differs by
        `difference` from that at the horizon: linear in the logs, clipped to the outer rungs."""
        return math.exp(np.interp(difference, self.differences[::-1], self.logs[::-1]))

    def effect(self, ratio: float) -> float:
        """Return by how much the baseline's log metric falls if its budget grows by `ratio`."""
        return -float(np.interp(math.log(ratio), self.logs, self.differences))


def comparison(d: np.ndarray, pooled: float, ours: bool, theirs: bool,
               ladder: Ladder | None = None) -> dict:
    """Return the ratio, its interval, the p value and the other statistics of one arm.

    d: paired differences of log cost, arm minus baseline, (studies,). pooled: their variance pooled
    over arms. ours, theirs: whether a run of the arm or of the baseline missed the target. With a
    ladder, the row has a `budget`, and `equal` and `studies_needed` are based on budgets.
    """
    mean, low, high, p = t_test(d, pooled)
    _, *narrow, _ = t_test(d, pooled, level=0.90)
    ends = [ladder.budget(end) if ladder else exp(end) for end in narrow]
    variance = float(np.var(d, ddof=1))
    row = {"ratio": math.exp(mean), "low": exp(low), "high": exp(high),
           "bound": bound(ours, theirs), "p": p,
           "anytime": anytime_interval(d, pooled), "e": e_value(d),
           "wins_a_study": wins_a_study(mean, variance, pooled, len(d)),
           "studies_needed": studies_needed(variance, pooled, ladder.effect(NEEDED_RATIO)
                                            if ladder else math.log(NEEDED_RATIO)),
           "equal": bool(min(ends) >= 1 - EQUAL and max(ends) <= 1 + EQUAL)}
    if ladder:
        row["budget"] = [ladder.budget(end) for end in (mean, high, low)]
    return row


def bound(ours: bool, theirs: bool) -> str:
    """Return what a ratio is if a run of the arm or of its partner missed the target, and so counts
    as the cap: "" (an estimate), "at least", "at most" or "unknown"."""
    if ours and theirs:
        return "unknown"
    return "at least" if ours else "at most" if theirs else ""


def used_variance(own: float, pooled: float) -> float:
    """Return the variance for an arm's interval: its own, or the mean of its own and the pooled one
    where that is larger; never 0."""
    return max(own, (own + pooled) / 2, TINY)


def t_test(d: np.ndarray, pooled: float, level: float = 0.95
           ) -> tuple[float, float, float, float]:
    """Return (mean, low, high, two-sided p) of K >= 2 differences, with 2 (K - 1) degrees of
    freedom."""
    mean, count = float(np.mean(d)), len(d)
    freedom = 2 * (count - 1)
    error = math.sqrt(used_variance(float(np.var(d, ddof=1)), pooled) / count)
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    return mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, freedom))


def anytime_interval(d: np.ndarray, pooled: float, alpha: float = 0.05) -> list[float]:
    """Return the ratio's confidence sequence, [low, high]: an interval that is valid at all numbers
    of studies simultaneously (normal mixture)."""
    mean = float(np.mean(d))
    half = _anytime_half(used_variance(float(np.var(d, ddof=1)), pooled), len(d), alpha)
    return [exp(mean - half), exp(mean + half)]


def _anytime_half(variance: float, count: int, alpha: float) -> float:
    return math.sqrt(variance * 2 * (count + 1) / count**2 * math.log(
        math.sqrt(count + 1) / alpha))


def anytime_studies(mean: float, own: float, pooled: float, least: int, most: int = 1000,
                    alpha: float = 0.05) -> int | None:
    """Return the smallest number of studies, from `least` to `most`, at which the anytime interval
    around a mean log difference excludes 0. None if there is none."""
    variance = used_variance(own, pooled)
    return next((count for count in range(least, most + 1)
                 if _anytime_half(variance, count, alpha) < abs(mean)), None)


def e_value(d: np.ndarray) -> float:
    """Return the e-value of the t test of no difference, exact at every number of studies."""
    count, total = len(d), float(np.sum(d))
    scaled = (count + PRIOR) * max(float(np.sum(np.square(d))), TINY)
    return math.sqrt(PRIOR / (count + PRIOR)) * (scaled / (scaled - total**2)) ** (count / 2)


def wins_a_study(mean: float, own: float, pooled: float, count: int) -> float:
    """Return the probability that the arm is cheaper than the baseline in one further study."""
    error = math.sqrt(used_variance(own, pooled) * (1 + 1 / count))
    return float(stats.t.cdf(-mean / error, 2 * (count - 1)))


def studies_needed(own: float, pooled: float, effect: float) -> int:
    """Return how many studies detect a mean log difference of `effect` with power 0.8."""
    return math.ceil(sum(POWER)**2 * used_variance(own, pooled) / effect**2 + 2)


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Return the p values adjusted for the false discovery rate (Benjamini and Hochberg 1995)."""
    order = np.argsort(p)
    factors = len(p) / (np.arange(len(p)) + 1)
    scaled = np.asarray(p, float)[order] * factors
    adjusted = np.minimum(1.0, np.minimum.accumulate(scaled[::-1])[::-1])
    result = np.empty(len(order))
    result[order] = adjusted
    return result.tolist()


def exp(value: float) -> float:
    """e^value, large but finite on overflow."""
    return math.exp(min(value, 700.0))
