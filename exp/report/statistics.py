"""Estimates over seeds with 95 % intervals, and tests of differences, computed by scipy.

A seed that never reached its target is censored at the end of its run, not dropped.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # loads scipy.stats, which takes seconds to import, only when it is used

LEVEL = 0.95
RESAMPLES = 9999
ROUNDING = 1e-9  # tolerance of a share; below 1 / n^2 for the numbers n of seeds in use
EXACT_UP_TO = 12  # seeds: up to 2^12 sign changes are enumerated, beyond that sampled


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its 95 % interval (nan if n is too small for one), from n seeds.

    A median time is infinite if it was not reached.
    """

    value: float
    low: float
    high: float
    n: int


def mean(values: Sequence[float]) -> Estimate:
    """Return the mean over seeds with Student's t interval. (A bootstrap interval of three seeds,
    from the least to the greatest, covers the true mean only three times in four.)"""
    array = np.asarray(values, dtype=float)
    low, high = _t_interval(array)
    return Estimate(float(array.mean()), low, high, len(array))


def geometric_mean(values: Sequence[float]) -> Estimate:
    """Return the geometric mean of positive values with an interval that is Student's on the log
    scale, for quantities that are compared as ratios, such as learning rates."""
    logs = mean([math.log(value) for value in values])
    return Estimate(math.exp(logs.value), math.exp(logs.low), math.exp(logs.high), logs.n)


def deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation, nan for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def survival(times: Sequence[float | None], limits: Sequence[float]):
    """Return scipy's survival function: the Kaplan-Meier share of seeds yet to reach the target.

    times: when each seed reached it, None if never. limits: how long each seed was observed.
    """
    reached = [time is not None for time in times]
    ends = [limit if time is None else time for time, limit in zip(times, limits, strict=True)]
    censored = scipy.stats.CensoredData.right_censored(ends, np.logical_not(reached))
    return scipy.stats.ecdf(censored).sf


def median_time(times: Sequence[float | None], limits: Sequence[float]) -> Estimate:
    """Return the Kaplan-Meier median and its interval. The interval is log-log, and the exact
    binomial one where no seed is left, at which log-log is undefined. An infinite value or end was
    not reached; all three are infinite if no seed reached the target. Arguments: as `survival`."""
    reached = [time for time in times if time is not None]
    if not reached:
        return Estimate(math.inf, math.inf, math.inf, len(times))
    curve = survival(times, limits)
    if len(times) == 1:
        return Estimate(float(reached[0]), math.nan, math.nan, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the band has no ends at 1 and at 0
        band = curve.confidence_interval(LEVEL, method="log-log")
    ends = ((band.low, 0.0), (band.high, 1 - ((1 - LEVEL) / 2) ** (1 / len(reached))))
    low, high = (
        _crossing(end.quantiles, np.where(curve.probabilities == 0, none_left, end.probabilities))
        for end, none_left in ends)
    return Estimate(_crossing(curve.quantiles, curve.probabilities), low, high, len(times))


def speedup(
    slow: Sequence[float | None], fast: Sequence[float | None], limits: Sequence[float],
) -> Estimate:
    """Return the median time of `slow` over that of `fast`, bootstrapped over the seeds of both.

    limits: how long each seed of `slow` was observed. Where half of them never reached the target,
    the ratio at that limit is a lower bound; the value and the upper end are infinite. All are nan
    if the median of `fast` was not reached.
    """
    rng = np.random.default_rng(0)
    slow_times = np.array([math.inf if time is None else time for time in slow])
    fast_times = np.array([math.inf if time is None else time for time in fast])
    n = min(len(slow), len(fast))
    if np.isinf(_median(fast_times)):
        return Estimate(math.nan, math.nan, math.nan, n)
    ratio = float(_median(slow_times) / _median(fast_times))
    if n < 2:
        return Estimate(ratio, math.nan, math.nan, n)
    observed = np.where(np.isinf(slow_times), np.asarray(limits, dtype=float), slow_times)
    a, b = (rng.integers(0, len(times), (RESAMPLES, len(times)))
            for times in (slow_times, fast_times))
    denominator = _median(fast_times[b])
    low = np.quantile(_median(observed[a]) / denominator, (1 - LEVEL) / 2)
    with np.errstate(invalid="ignore"):
        ratios = np.nan_to_num(_median(slow_times[a]) / denominator, nan=math.inf,
                               posinf=math.inf)
    high = np.quantile(ratios, (1 + LEVEL) / 2, method="higher")
    return Estimate(ratio, float(low), float(high), n)


def paired(ours: dict[int, float], baseline: dict[int, float]) -> tuple[Estimate, float]:
    """Return the mean difference ours - baseline on the seeds of both, and the p value of a
    two-sided permutation test of its sign.

    With n pairs the least possible p is 2^(1-n): three seeds cannot reach 0.05.
    """
    seeds = sorted(ours.keys() & baseline.keys())
    differences = np.array([ours[seed] - baseline[seed] for seed in seeds])
    if len(differences) < 2:
        return Estimate(float(differences.mean()) if len(differences) else math.nan,
                        math.nan, math.nan, len(differences)), math.nan
    low, high = _t_interval(differences)
    resamples = np.inf if len(differences) <= EXACT_UP_TO else RESAMPLES
    test = scipy.stats.permutation_test((differences,), np.mean, permutation_type="samples",
                                        n_resamples=resamples, rng=np.random.default_rng(0))
    return Estimate(float(differences.mean()), low, high, len(differences)), float(test.pvalue)


def welch(values: Sequence[float], others: Sequence[float]) -> tuple[Estimate, float, float]:
    """Return the difference of two unpaired means with its Welch interval, t, two-sided p value."""
    difference = float(np.mean(values) - np.mean(others))
    n = min(len(values), len(others))
    if n < 2:
        return Estimate(difference, math.nan, math.nan, n), math.nan, math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # equal values: no variance
        test = scipy.stats.ttest_ind(values, others, equal_var=False)
    low, high = test.confidence_interval(LEVEL)
    return (Estimate(difference, float(low), float(high), n), float(test.statistic),
            float(test.pvalue))


def logrank(
    times: Sequence[float | None], limits: Sequence[float],
    other_times: Sequence[float | None], other_limits: Sequence[float],
) -> float:
    """Return the p value of the log-rank test that two groups of seeds reach the target equally
    soon; nan if no seed of either reached it. Arguments: as `survival`, for each group."""
    if all(time is None for time in (*times, *other_times)):
        return math.nan
    groups = []
    for these, watched in ((times, limits), (other_times, other_limits)):
        missing = [time is None for time in these]
        ends = [limit if time is None else time for time, limit in zip(these, watched, strict=True)]
        groups.append(scipy.stats.CensoredData.right_censored(ends, missing))
    return float(scipy.stats.logrank(*groups).pvalue)


def _median(times: np.ndarray) -> np.ndarray:
    """Return the Kaplan-Meier median over the last axis, of times with none censored early: for an
    even number the lower middle one, when half of the seeds have reached the target."""
    return np.sort(times, axis=-1)[..., (times.shape[-1] - 1) // 2]


def _crossing(quantiles: np.ndarray, shares: np.ndarray) -> float:
    """Return the first time at which at most half of the seeds are left, infinite if more remain. A
    share is a running product, so one half may be computed as 0.5000000000000001."""
    passed = np.flatnonzero(np.nan_to_num(shares, nan=1.0) <= 0.5 + ROUNDING)
    return float(quantiles[passed[0]]) if len(passed) else math.inf


def _t_interval(values: np.ndarray) -> tuple[float, float]:
    if len(values) < 2:
        return math.nan, math.nan
    half = scipy.stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * scipy.stats.sem(values)
    center = values.mean()
    return float(center - half), float(center + half)
