"""Judgements: the verdict on a claim, given the evidence.

    number  holds          the 90 % interval lies within the claimed number +- the tolerance (two
                           one-sided tests at 5 %)
            does not hold  the 95 % interval lies outside of that range, and the claimed number
                           outside the 95 % prediction interval for a mean of as many runs as the
                           claim rests on
    bound   holds          the near one-sided 95 % bound of our value lies beyond the claimed bound
            does not hold  the far one-sided 95 % bound does not exceed the claimed bound by
                           `floor`, the least effect worth naming
    All else is inconclusive. In a table of many claims, p values are corrected by Holm's method.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from exp.report.evidence import Ends, Evidence
from exp.report.statistics import LEVEL

ALPHA = 1 - LEVEL
LEAST_P = 1e-6  # floor of p values
POWER = 0.8
MOST_NEEDED = 1000  # seeds; if more are needed, the true value may lie on the edge between verdicts
ORDERED = 5  # the least n such that n seeds all lie on one given side with probability < ALPHA
POINTS, WORTH_NAMING = 0.5, 0.01  # least effects worth naming: points of accuracy, share of a loss
HOLDS, FAILS, INCONCLUSIVE = "holds", "does not hold", "inconclusive"


@dataclass(frozen=True)
class Judgement:
    """A verdict, `word`. p: the smallest alpha at which it stands, 1 if inconclusive.

    Of an inconclusive one: needed: number of seeds that decides with probability 80 % if the true
    value is the measured one, None if unknown or above 1000. why: the obstacle, in a few words.
    leaning: the verdict if the true value is the measured one.
    """

    word: str
    p: float = 1.0
    needed: int | None = None
    why: str = ""
    leaning: str = ""


def in_words(verdict: Judgement, n: int, unit: str = "seed", where: str = "") -> str:
    """Return the text of a verdict from n units, alike on all pages: "**inconclusive**, 12 seeds
    needed". where: text inserted after the bold word."""
    words = f"**{verdict.word}**{where}"
    if verdict.word == INCONCLUSIVE and n == 1:
        return f"{words}: one {unit} has no interval"
    if verdict.needed is None:
        return f"{words}: {verdict.why}" if verdict.why else words
    return f"{words}, {verdict.needed} {unit}s needed" + f" ({verdict.why})" * bool(verdict.why)


def judge_number(ours: Evidence, claimed: float, tolerance: Ends, runs: float = 1) -> Judgement:
    """Judge whether our value equals the claimed one, a mean of `runs` runs (infinite for a value
    from theory). tolerance: (least, greatest) value that still counts as equal."""
    least, most = tolerance

    def verdict(alpha: float) -> str:
        low, high = ours.interval(1 - 2 * alpha)
        if least <= low and high <= most:
            return HOLDS
        low, high = ours.interval(1 - alpha)
        if (low > most or high < least) and not _within(claimed, ours.prediction(1 - alpha, runs)):
            return FAILS
        return INCONCLUSIVE

    low, high = ours.interval(1 - ALPHA)
    why = (f"the claimed number rests on {runs} run{'s' * (runs > 1)}"
           if low > most or high < least else "")
    distances = [_distance(ours, ours.value, edge) for edge in tolerance]
    return _judgement(verdict, ours, min(map(abs, distances)), why)


def judge_above(ours: Evidence, bound: float, floor: float = 0.0) -> Judgement:
    """Judge whether our value is above a bound. floor: the least difference worth naming."""
    def verdict(alpha: float) -> str:
        low, high = ours.interval(1 - 2 * alpha)
        return HOLDS if low > bound else FAILS if high < bound + floor else INCONCLUSIVE

    return _judgement(verdict, ours, max(_distance(ours, ours.value, bound),
                                         _distance(ours, bound + floor, ours.value)))


def judge_below(ours: Evidence, bound: float, floor: float = 0.0) -> Judgement:
    """Judge whether our value is below a bound. floor: the least difference worth naming."""
    def verdict(alpha: float) -> str:
        low, high = ours.interval(1 - 2 * alpha)
        return HOLDS if high < bound else FAILS if low > bound - floor else INCONCLUSIVE

    return _judgement(verdict, ours, max(_distance(ours, bound, ours.value),
                                         _distance(ours, ours.value, bound - floor)))


def judge_exact(holds: bool) -> Judgement:
    """Judge a statement without sampling error, e.g. a mathematical identity."""
    return Judgement(HOLDS if holds else FAILS, LEAST_P)


def judge_all(parts: Sequence[Judgement]) -> Judgement:
    """Judge a statement whose parts must all hold. It holds if all parts do, without correction. It
    does not hold if a part does not hold after Holm's correction."""
    if all(part.word == HOLDS for part in parts):
        return Judgement(HOLDS, max(part.p for part in parts))
    after = corrected(parts)
    failed = [part.p for part in after if part.word == FAILS]
    if failed:
        return Judgement(FAILS, min(failed))
    return _undecided([now for part, now in zip(parts, after, strict=True) if part.word != HOLDS])


def judge_any(parts: Sequence[Judgement]) -> Judgement:
    """Judge a statement of which at least one part must hold. It holds if a part holds after Holm's
    correction. It does not hold if no part does, without correction."""
    return _opposite(judge_all([_opposite(part) for part in parts]))


def _undecided(parts: Sequence[Judgement]) -> Judgement:
    """Return the inconclusive judgement of a statement whose parts must all hold. parts: those that
    do not hold. Where parts lean to "does not hold", one of them decides: `needed` is their
    minimum, else the maximum over all parts."""
    known = [part for part in parts if part.needed is not None]
    failing = [part for part in known if part.leaning == FAILS]
    if failing or len(known) == len(parts):
        part = (min(failing, key=lambda part: part.needed or 0) if failing
                else max(known, key=lambda part: part.needed or 0))
    else:
        part = next(part for part in parts if part.needed is None)
    return Judgement(INCONCLUSIVE, 1.0, part.needed, part.why, part.leaning)


def _opposite(part: Judgement) -> Judgement:
    """Return the judgement of the negated statement."""
    opposite = {HOLDS: FAILS, FAILS: HOLDS}
    return replace(part, word=opposite.get(part.word, part.word),
                   leaning=opposite.get(part.leaning, part.leaning))


def corrected(parts: Sequence[Judgement]) -> list[Judgement]:
    """Return the judgements after Holm's correction; verdicts with p > ALPHA become inconclusive.
    """
    return [Judgement(INCONCLUSIVE, p, part.needed, f"p = {p:.2g} after Holm's correction",
                      part.word)
            if part.word != INCONCLUSIVE and p > ALPHA else replace(part, p=p)
            for part, p in zip(parts, holm([part.p for part in parts]), strict=True)]


def holm(p: Sequence[float]) -> list[float]:
    """Return p values adjusted after Holm 1979, which controls the probability of any false verdict
    among all of them."""
    order = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)
    adjusted = np.minimum(1.0, np.maximum.accumulate(np.asarray(p, dtype=float)[order] * factors))
    return [float(adjusted[place]) for place in np.argsort(order, kind="stable")]


def _within(value: float, ends: Ends) -> bool:
    return ends[0] <= value <= ends[1]


def _distance(ours: Evidence, above: float, below: float) -> float:
    """Return `above` minus `below`, on the log scale if the evidence is; nan if one is not finite.
    """
    if not (math.isfinite(above) and math.isfinite(below)):
        return math.nan
    if not ours.log:
        return above - below
    return math.log(above / below) if above > 0 < below else math.nan


def _judgement(verdict: Callable[[float], str], ours: Evidence, gap: float, why: str = ""
               ) -> Judgement:
    """Return the judgement at ALPHA, with the smallest alpha at which it stands. gap: half width of
    the interval below which there would be a verdict."""
    word = verdict(ALPHA)
    if word == INCONCLUSIVE:
        needed = None if why else _needed(ours, gap)
        if not why and needed is None and math.isfinite(ours.value) and ours.sd > 0:
            why = "too close to the threshold"
        return Judgement(word, needed=needed, why=why, leaning=verdict(0.5))
    low, high = math.log(LEAST_P), math.log(ALPHA)  # bisection: the verdict stands at `high`
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if verdict(math.exp(middle)) == word else (middle, high)
    return Judgement(word, math.exp(high))


def _needed(ours: Evidence, gap: float) -> int | None:
    """Return the least number of seeds, more than now, for power POWER at a one-sided ALPHA if the
    true value is ours: (t(1 - ALPHA) + t(POWER)) sd / sqrt(n) is at most `gap`, with Student's t
    of n - 1 degrees of freedom."""
    if math.isnan(ours.sd) and 1 < ours.n < ORDERED and not math.isnan(ours.value):
        return ORDERED  # by order statistics
    if not (math.isfinite(ours.value) and ours.sd > 0):
        return None
    n = np.arange(max(ours.n, 1) + 1, MOST_NEEDED + 1)
    quantiles = special.stdtrit(n - 1, 1 - ALPHA) + special.stdtrit(n - 1, POWER)
    enough = n[quantiles * ours.sd / np.sqrt(n) <= gap]
    return int(enough[0]) if len(enough) else None
