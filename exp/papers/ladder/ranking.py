"""The statistics of the ladder's preregistration: comparison of two rankings of optimizers.

Every function is declared in preregistration.toml beside this file. Rankings are by a number of
which less is better: bits per byte here, steps or loss in a reference.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import scipy
from numpy.typing import ArrayLike

from exp.report.statistics import LEVEL, RESAMPLES, Estimate, deviation, mean

TARGET_LOSS = 3.28  # nats: track 3's target
SIGMA = 0.0013  # nats: track 3's assumed deviation between seeds
SLOPE = 0.145  # nats per factor e of steps near the end: measured on track 3's logs
LOSS_PER_STEP = 0.0045 / 100  # the same per step near 3,225 steps
SEPARATED = 0.004  # track 3's rule: the least (difference of loss) / sqrt(1/n1 + 1/n2)
POWER = 0.90
LEAST_SLOPE = 1e-4  # bits per byte per factor e of steps: a curve flatter than this gives no steps


@dataclass(frozen=True)
class Reference:
    """A row of track 3: steps, mean validation loss (nats) and number of runs."""

    steps: int
    loss: float
    n: int

    @property
    def normalized(self) -> float:
        """Estimated number of steps to a loss of exactly 3.28."""
        return self.steps * math.exp(-(TARGET_LOSS - self.loss) / SLOPE)

    @property
    def error(self) -> float:
        """Standard error of the logarithm of `normalized`."""
        return SIGMA / math.sqrt(self.n) / SLOPE

    def is_better(self, other: "Reference") -> bool:
        """Whether this row is better by track 3's own significance rule."""
        lead = other.loss - self.loss + (other.steps - self.steps) * LOSS_PER_STEP
        return lead / math.sqrt(1 / self.n + 1 / other.n) >= SEPARATED


def spearman(ours: ArrayLike, theirs: ArrayLike) -> float:
    """Return Spearman's rho with midranks for ties; nan if all values of one side are equal."""
    return float(_rhos(np.array([ours]), np.array([theirs]))[0])


def _rhos(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return `spearman` of each row, (rows,), for two arrays (rows, arms)."""
    a, b = (scipy.stats.rankdata(values, axis=1) for values in (ours, theirs))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))


def permutation_p(ours: Sequence[float], theirs: Sequence[float], draws: int = 99_999) -> float:
    """Return the one-sided p value of `spearman`: the share of random permutations with at least
    the same rho."""
    rng = np.random.default_rng(0)
    a, b = (scipy.stats.rankdata(values) for values in (ours, theirs))
    agreement = rng.permuted(np.tile(a, (draws, 1)), axis=1) @ b
    return float((1 + np.count_nonzero(agreement >= a @ b - 1e-9)) / (1 + draws))


def score(values: Sequence[float]) -> float:
    """Return the score of an arm: the mean over its seeds; the median if one diverged (infinite).
    """
    return float(np.mean(values) if np.isfinite(values).all() else np.median(values))


def bootstrap_rho(ours: Mapping[str, Sequence[float]], reference: Mapping[str, Reference]
                  ) -> Estimate:
    """Return `spearman` of the arms' scores over seeds and the normalized steps, with a bootstrap
    95 % interval: seeds are resampled, references redrawn within their errors. Arms: all of
    `ours`."""
    rng = np.random.default_rng(0)
    steps = np.array([reference[arm].normalized for arm in ours])
    errors = np.array([reference[arm].error for arm in ours])
    draws = _resampled(ours.values(), rng)
    redrawn = steps * np.exp(errors * rng.standard_normal(draws.shape))
    return _estimate(spearman([score(values) for values in ours.values()], steps),
                     _rhos(draws, redrawn), len(ours))


def bootstrap_rho_of_runs(ours: Mapping[str, Sequence[float]],
                          theirs: Mapping[str, Sequence[float]]) -> Estimate:
    """Return `spearman` of two sets of runs of the same arms, with a bootstrap 95 % interval: the
    seeds of both sides are resampled. Arms: all of `ours`."""
    rng = np.random.default_rng(0)
    sides = ours.values(), [theirs[arm] for arm in ours]
    return _estimate(spearman(*([score(values) for values in side] for side in sides)),
                     _rhos(*(_resampled(side, rng) for side in sides)), len(ours))


def _resampled(arms: Iterable[Sequence[float]], rng: np.random.Generator) -> np.ndarray:
    """Return the arms' scores, (RESAMPLES, arms), over seeds drawn with replacement."""
    draws = [rng.choice(np.asarray(values, dtype=float), (RESAMPLES, len(values)))
             for values in arms]
    return np.stack([of.mean(1) if np.isfinite(of).all() else np.median(of, axis=1)
                     for of in draws], axis=1)


def _estimate(rho: float, draws: np.ndarray, arms: int) -> Estimate:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(rho, float(low), float(high), arms)


def agreeing_pairs(ours: Mapping[str, float], reference: Mapping[str, Reference]
                   ) -> tuple[int, int]:
    """Return (number of pairs ordered alike here, number of pairs that track 3 separates)."""
    separated = [(a, b) for pair in combinations(ours, 2) for a, b in (pair, pair[::-1])
                 if reference[a].is_better(reference[b])]
    return sum(ours[a] < ours[b] for a, b in separated), len(separated)


def chance(reference: Mapping[str, Reference], error: float, target: float = 0.8,
           draws: int = 2000) -> tuple[float, float]:
    """Return (median rho, probability of rho >= target) if ln(steps) here were the reference's plus
    a normal error with this standard deviation: the power of the test of the ranking."""
    rng = np.random.default_rng(0)
    logs = np.log([row.normalized for row in reference.values()])
    noise = error * rng.standard_normal((draws, len(logs)))
    rhos = _rhos(logs + noise, np.broadcast_to(logs, noise.shape))
    return float(np.median(rhos)), float(np.mean(rhos >= target))


def seeds_needed(difference: float, sigma: float) -> float:
    """Return the seeds per arm that detect a difference of two means at the 95 % level with 90 %
    power, unpaired; infinity for a difference of 0."""
    quantile = scipy.stats.norm.ppf
    z = quantile((1 + LEVEL) / 2) + quantile(POWER)
    return math.ceil(2 * z**2 * (sigma / difference) ** 2) if difference else math.inf


def noise_band(repeats: Sequence[float], n: int) -> float:
    """Return the 95 % band of the difference of two means of n seeds of one arm, estimated from its
    repeats."""
    t = scipy.stats.t.ppf((1 + LEVEL) / 2, len(repeats) - 1)
    return float(t * deviation(repeats) * math.sqrt(2 / n))


def paired_difference(ours: Mapping[int, float], other: Mapping[int, float]) -> Estimate:
    """Return the mean of ours - other over the seeds of both, with its 95 % t interval; nan without
    such a seed. ours, other: seed -> bits per byte."""
    shared = sorted(ours.keys() & other.keys())
    return (mean([ours[seed] - other[seed] for seed in shared]) if shared
            else Estimate(math.nan, math.nan, math.nan, 0))


def is_better(ours: Mapping[int, float], other: Mapping[int, float], band: float) -> bool:
    """Whether an arm is better at one rung: the paired interval excludes 0 and the difference is at
    least the band. A verdict needs a second rung. ours, other: seed -> bits per byte."""
    difference = paired_difference(ours, other)
    return difference.high < 0 and -difference.value >= band


def fit_horizons(steps: Sequence[float], losses: Sequence[float]) -> tuple[float, float, float]:
    """Fit losses = a + b steps^-c, a, b, c >= 0, by least squares to at least four points; return
    (a, b, c). Raises ValueError if the fit does not converge or the losses do not fall."""
    scale = float(np.mean(steps))
    x = np.asarray(steps, dtype=float) / scale
    start = (0.8 * min(losses), 0.2 * min(losses), 0.5)
    try:
        (a, b, c), _ = scipy.optimize.curve_fit(
            lambda s, a, b, c: a + b * s**-c, x, losses, start, bounds=(0, np.inf),
            max_nfev=20_000, x_scale=start)
    except RuntimeError as error:
        raise ValueError(f"no curve through AdamW's losses: {error}") from error
    if b * c < LEAST_SLOPE:
        raise ValueError("AdamW's losses do not fall with the steps")
    return float(a), float(b * scale**c), float(c)


def steps_equivalent(loss: float, curve: tuple[float, float, float]) -> float:
    """Return the steps at which the fitted curve reaches a loss; infinity below its asymptote."""
    a, b, c = curve
    try:
        return (b / (loss - a)) ** (1 / c) if loss > a else math.inf
    except OverflowError:
        return math.inf
