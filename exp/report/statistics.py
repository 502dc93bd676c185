"""Estimates over seeds with 95 % intervals, tests of differences; scipy does the statistics.

Times that were never reached are censored where the run ended, not dropped.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # whose `stats`, seconds to import, is loaded when it is used

LEVEL = 0.95
RESAMPLES = 9999
ROUNDING = 1e-9  # below 1 / n^2 for any number n of seeds that is run
EXACT_UP_TO = 12  # seeds: 2^12 sign changes are all tried, more are sampled


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its 95 % interval (nan where n is too small for one), from n seeds.

    A median that was not reached is infinite.
    """

    value: float
    low: float
    high: float
    n: int


def mean(values: Sequence[float]) -> Estimate:
    """The mean, with Student's t interval over seeds: of three seeds a bootstrap's, from the least
    to the greatest of them, holds the true mean only three times in four."""
    array = np.asarray(values, dtype=float)
    low, high = _t_interval(array)
    return Estimate(float(array.mean()), low, high, len(array))


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation, nan for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def survival(times: Sequence[float | None], limits: Sequence[float]):
    """Kaplan-Meier: the share of seeds that have not got there yet, as scipy's survival function.

    times: when each seed got there, None if never; limits: how long each was watched.
    """
    reached = [time is not None for time in times]
    ends = [limit if time is None else time for time, limit in zip(times, limits, strict=True)]
    censored = scipy.stats.CensoredData.right_censored(ends, np.logical_not(reached))
    return scipy.stats.ecdf(censored).sf


def median_time(times: Sequence[float | None], limits: Sequence[float]) -> Estimate:
    """The Kaplan-Meier median and its interval (log-log, and where nobody is left the exact
    binomial one, which log-log has not); infinite ends were not reached, all three where no seed
    got there."""
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
    """Median time of `slow` over that of `fast`, bootstrapped over the seeds of both.

    limits: how long each seed of `slow` was watched. Where half of them never got there, the
    ratio at that limit is a lower bound: the value and the upper end are infinite.
    """
    rng = np.random.default_rng(0)
    late = np.array([math.inf if time is None else time for time in slow])
    early = np.array([math.inf if time is None else time for time in fast])
    n = min(len(slow), len(fast))
    if np.isinf(_median(early)):
        return Estimate(math.nan, math.nan, math.nan, n)
    if n < 2:
        return Estimate(float(_median(late) / _median(early)), math.nan, math.nan, n)
    watched = np.where(np.isinf(late), np.asarray(limits, dtype=float), late)
    a, b = (rng.integers(0, len(times), (RESAMPLES, len(times))) for times in (late, early))
    denominator = _median(early[b])
    low = np.quantile(_median(watched[a]) / denominator, (1 - LEVEL) / 2)
    with np.errstate(invalid="ignore"):
        ratios = np.nan_to_num(_median(late[a]) / denominator, nan=math.inf,
                               posinf=math.inf)
    high = np.quantile(ratios, (1 + LEVEL) / 2, method="higher")
    return Estimate(float(_median(late) / _median(early)), float(low), float(high), n)


def paired(ours: dict[int, float], baseline: dict[int, float]) -> tuple[Estimate, float]:
    """Mean difference on equal seeds, and the p value of a two-sided permutation test on its sign.

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
    """Difference of two means without pairs, its Welch interval, t and two-sided p value."""
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
    """p value of the log-rank test that two groups of seeds get there equally soon; nan if none
    of either got there."""
    if all(time is None for time in (*times, *other_times)):
        return math.nan
    groups = []
    for these, watched in ((times, limits), (other_times, other_limits)):
        missing = [time is None for time in these]
        ends = [limit if time is None else time for time, limit in zip(these, watched, strict=True)]
        groups.append(scipy.stats.CensoredData.right_censored(ends, missing))
    return float(scipy.stats.logrank(*groups).pvalue)


def _median(times: np.ndarray) -> np.ndarray:
    """The Kaplan-Meier median of times of which none is censored early: of an even number the
    lower middle one, when half have got there."""
    return np.sort(times, axis=-1)[..., (times.shape[-1] - 1) // 2]


def _crossing(quantiles: np.ndarray, shares: np.ndarray) -> float:
    """The first time at which at most half are left; infinite if more than half remain. A share is
    a running product, and one half of it may read 0.5000000000000001."""
    passed = np.flatnonzero(np.nan_to_num(shares, nan=1.0) <= 0.5 + ROUNDING)
    return float(quantiles[passed[0]]) if len(passed) else math.inf


def _t_interval(values: np.ndarray) -> tuple[float, float]:
    if len(values) < 2:
        return math.nan, math.nan
    half = scipy.stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * scipy.stats.sem(values)
    center = values.mean()
    return float(center - half), float(center + half)
