"""Evidence: a quantity measured over seeds, with a confidence interval at any level.

Times and ratios are compared on the log scale. Where a seed never reached its target, or all seeds
have the same value, the estimate is the median with an interval by order statistics.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy  # loads scipy.stats, which takes seconds to import, only when it is used
from scipy import special

from exp.report.statistics import LEVEL, Estimate

Ends = tuple[float, float]


@dataclass(frozen=True)
class Evidence:
    """A measured quantity, in the claim's unit, from n seeds.

    interval: level -> (low, high). prediction: (level, m) -> (low, high) for a mean of m further
    runs. sd: standard deviation of one run, on the log scale if `log`, nan if unknown. reference:
    the size of which the least effect worth naming is a share, 0 if there is none.
    """

    value: float
    n: int
    interval: Callable[[float], Ends]
    prediction: Callable[[float, float], Ends]
    sd: float = math.nan
    log: bool = False
    reference: float = 0.0

    @cached_property
    def estimate(self) -> Estimate:
        """The value with its 95 % interval; the ends are nan if the interval is unbounded."""
        ends = self.interval(LEVEL)
        unbounded = ends == (-math.inf, math.inf) or self.log and ends == (0.0, math.inf)
        return Estimate(self.value, *((math.nan, math.nan) if unbounded else ends), self.n)

    def mapped(self, change: Callable[[float], float]) -> "Evidence":
        """Return the same quantity in another unit. change: a monotone function."""
        def both(ends: Ends) -> Ends:
            low, high = sorted(map(change, ends))
            return low, high

        return Evidence(change(self.value), self.n, lambda level: both(self.interval(level)),
                        lambda level, m: both(self.prediction(level, m)), self.sd, self.log,
                        self.reference)


def sample(values: Sequence[float], log: bool = False, reference: float = 0.0) -> Evidence:
    """Return the evidence of one value per seed: their mean (geometric if `log`) with Student's t
    interval. It is the median with order statistics if a value is infinite (the run never reached
    its target), nan (unknown) or a 0 under `log`, and if all values are equal (unknown spread)."""
    array = np.asarray(values, dtype=float)
    if (not np.isfinite(array).all() or log and not array.all()
            or len(array) > 1 and np.ptp(array) == 0):
        return _of_order(array, log, reference)
    n, scaled = len(array), np.log(array) if log else array
    unscale = np.exp if log else float

    def t_interval(level: float, extra: float = 0.0) -> Ends:
        if n < 2:
            return float(unscale(-math.inf)), math.inf
        half = (special.stdtrit(n - 1, (1 + level) / 2) * scaled.std(ddof=1)
                * math.sqrt(1 / n + extra))
        return float(unscale(scaled.mean() - half)), float(unscale(scaled.mean() + half))

    sd = float(scaled.std(ddof=1)) if n > 1 else math.nan
    return Evidence(float(unscale(scaled.mean())), n, t_interval,
                    lambda level, m: t_interval(level, 1 / m), sd, log, reference)


def _of_order(values: np.ndarray, log: bool, reference: float) -> Evidence:
    """Return the median of values that may be infinite or nan, with intervals by order statistics.
    The k-th lowest of n values is above the median with the probability of fewer than k heads in n
    tosses of a coin."""
    n, least = len(values), 0.0 if log else -math.inf
    low = np.sort(np.where(np.isnan(values), least, values))
    high = np.sort(np.where(np.isnan(values), math.inf, values))

    def ends(cut: int) -> Ends:  # cut: number of values left out on either side
        if cut < 0:
            return least, math.inf
        return float(low[cut]), float(high[n - 1 - cut])

    def interval(level: float) -> Ends:
        tail = special.bdtr(np.arange(n // 2 + 1), n, 0.5)
        return ends(int(np.sum(2 * tail <= 1 - level + 1e-12)) - 1)

    def prediction(level: float, m: float) -> Ends:  # unbounded unless m is 1
        return ends(int((1 - level) * (n + 1) / 2 + 1e-9) - 1 if m == 1 else -1)

    middle = (n - 1) // 2
    value = float(low[middle]) if low[middle] == high[middle] else math.nan
    return Evidence(value, n, interval, prediction, math.nan, log, reference)


def unpaired(values: Sequence[float], others: Sequence[float]) -> Evidence:
    """Return the difference of two unpaired means, with Welch's interval and no prediction."""
    groups = [np.asarray(group, dtype=float) for group in (values, others)]
    n = min(map(len, groups))
    variances = [group.var(ddof=1) / len(group) if len(group) > 1 else math.inf
                 for group in groups]
    difference = float(groups[0].mean() - groups[1].mean())
    error = math.sqrt(sum(variances))
    df = (sum(variances) ** 2 / sum(part**2 / (len(group) - 1) for part, group in
                                    zip(variances, groups, strict=True))
          if 0 < error < math.inf else 1.0)

    def interval(level: float) -> Ends:
        half = special.stdtrit(df, (1 + level) / 2) * error if error else 0.0
        return difference - half, difference + half

    return Evidence(difference, n, interval, lambda level, m: (-math.inf, math.inf),
                    error * math.sqrt(n))


def proportion(successes: int, n: int, unit: float = 1.0) -> Evidence:
    """Return a share of n trials, times `unit`, with the exact (Clopper-Pearson) interval."""
    def interval(level: float) -> Ends:
        if not n:
            return -math.inf, math.inf
        low, high = scipy.stats.binomtest(successes, n).proportion_ci(level)
        return unit * float(low), unit * float(high)

    share = successes / n if n else math.nan
    return Evidence(unit * share, n, interval, lambda level, m: (-math.inf, math.inf),
                    unit * math.sqrt(share * (1 - share)) if n else math.nan)


def exact(values: Sequence[float], n: int) -> Evidence:
    """Return the evidence of values without sampling error, e.g. bytes of memory: their mean, with
    the least and the greatest value as the ends of every interval."""
    ends = min(values), max(values)
    return Evidence(sum(values) / len(values), n, lambda level: ends, lambda level, m: ends, 0.0)
