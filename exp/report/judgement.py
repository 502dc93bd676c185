"""Judgements: what a claim becomes by the evidence.

    number  holds          its 90 % interval is within the claimed number +- the tolerance (two
                           one-sided tests at 5 %)
            does not hold  its 95 % interval is outside of that, and the claimed number outside the
                           95 % prediction interval of a mean of as many runs as the claim rests on
    bound   holds          the one-sided 95 % bound is beyond it
            does not hold  the other one-sided bound is not beyond it by `floor`, the least effect
                           worth naming
    Anything else is inconclusive. With many claims in a table, p values are corrected by Holm.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from exp.report.evidence import Ends, Evidence
from exp.report.statistics import LEVEL

ALPHA = 1 - LEVEL
LEAST_P = 1e-6  # smaller p values are not told apart
POWER = 0.8
MOST_NEEDED = 1000  # above that the true value may as well be on the edge
ORDERED = 5  # seeds of which all are on one side with a chance of less than ALPHA
POINTS, WORTH_NAMING = 0.5, 0.01  # the least effects: points of accuracy, share of a loss
HOLDS, FAILS, INCONCLUSIVE = "holds", "does not hold", "inconclusive"


@dataclass(frozen=True)
class Judgement:
    """A verdict; p: the least alpha at which it stands, 1 where it is inconclusive; needed: seeds
    that would decide it with a chance of 80 % where the truth is what we measured, None where that
    is not known or over a thousand; why: what stands in the way, in a few words; leaning: the
    verdict, were the truth what we measured."""

    word: str
    p: float = 1.0
    needed: int | None = None
    why: str = ""
    leaning: str = ""


def in_words(verdict: Judgement, n: int, unit: str = "seed", where: str = "") -> str:
    """A verdict from n units as every page has it: "**inconclusive**, 12 seeds needed"; where:
    words that follow the first."""
    words = f"**{verdict.word}**{where}"
    if verdict.word == INCONCLUSIVE and n == 1:
        return f"{words}: one {unit} has no interval"
    if verdict.needed is None:
        return f"{words}: {verdict.why}" if verdict.why else words
    return f"{words}, {verdict.needed} {unit}s needed" + f" ({verdict.why})" * bool(verdict.why)


def judge_number(ours: Evidence, claimed: float, tolerance: Ends, runs: float = 1) -> Judgement:
    """Whether our value is the claimed one, which rests on a mean of `runs` runs (infinite: on a
    theory). tolerance: the least and the greatest number that still count as the claimed one."""
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
    why = f"the claim is {runs} run{'s' * (runs > 1)}" if low > most or high < least else ""
    distances = [_distance(ours, ours.value, edge) for edge in tolerance]
    return _judgement(verdict, ours, min(map(abs, distances)), why)


def judge_above(ours: Evidence, bound: float, floor: float = 0.0) -> Judgement:
    """Whether our value is above a bound; floor: the least difference worth naming."""
    def verdict(alpha: float) -> str:
        low, high = ours.interval(1 - 2 * alpha)
        return HOLDS if low > bound else FAILS if high < bound + floor else INCONCLUSIVE

    return _judgement(verdict, ours, max(_distance(ours, ours.value, bound),
                                         _distance(ours, bound + floor, ours.value)))


def judge_below(ours: Evidence, bound: float, floor: float = 0.0) -> Judgement:
    """Whether our value is below a bound, as judge_above."""
    def verdict(alpha: float) -> str:
        low, high = ours.interval(1 - 2 * alpha)
        return HOLDS if high < bound else FAILS if low > bound - floor else INCONCLUSIVE

    return _judgement(verdict, ours, max(_distance(ours, bound, ours.value),
                                         _distance(ours, ours.value, bound - floor)))


def judge_exact(holds: bool) -> Judgement:
    """Of what has no sampling error, as mathematics has none."""
    return Judgement(HOLDS if holds else FAILS, LEAST_P)


def judge_all(parts: Sequence[Judgement]) -> Judgement:
    """Of a statement of several parts, all of which have to hold (no correction is needed); it
    does not hold where one of them does not, corrected by Holm."""
    if all(part.word == HOLDS for part in parts):
        return Judgement(HOLDS, max(part.p for part in parts))
    after = corrected(parts)
    failed = [part.p for part in after if part.word == FAILS]
    if failed:
        return Judgement(FAILS, min(failed))
    return _undecided([now for part, now in zip(parts, after, strict=True) if part.word != HOLDS])


def judge_any(parts: Sequence[Judgement]) -> Judgement:
    """Of a statement of which one part has to hold: that one does is corrected by Holm, that none
    does is not."""
    return _opposite(judge_all([_opposite(part) for part in parts]))


def _undecided(parts: Sequence[Judgement]) -> Judgement:
    """What is missing where no part of a statement fails and these do not hold: were one to fail,
    the seeds of the first that would, else those of all."""
    known = [part for part in parts if part.needed is not None]
    failing = [part for part in known if part.leaning == FAILS]
    if failing or len(known) == len(parts):
        part = (min(failing, key=lambda part: part.needed or 0) if failing
                else max(known, key=lambda part: part.needed or 0))
    else:
        part = next(part for part in parts if part.needed is None)
    return Judgement(INCONCLUSIVE, 1.0, part.needed, part.why, part.leaning)


def _opposite(part: Judgement) -> Judgement:
    """The verdict on the contrary of a statement."""
    turned = {HOLDS: FAILS, FAILS: HOLDS}
    return replace(part, word=turned.get(part.word, part.word),
                   leaning=turned.get(part.leaning, part.leaning))


def corrected(parts: Sequence[Judgement]) -> list[Judgement]:
    """The same verdicts, where Holm's correction of their p values leaves them."""
    return [Judgement(INCONCLUSIVE, p, part.needed, f"p {p:.2g} after Holm", part.word)
            if part.word != INCONCLUSIVE and p > ALPHA else replace(part, p=p)
            for part, p in zip(parts, holm([part.p for part in parts]), strict=True)]


def holm(p: Sequence[float]) -> list[float]:
    """p values after Holm 1979: each is the chance of any false verdict among all of them."""
    order = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)
    adjusted = np.minimum(1.0, np.maximum.accumulate(np.asarray(p, dtype=float)[order] * factors))
    return [float(adjusted[place]) for place in np.argsort(order, kind="stable")]


def _within(value: float, ends: Ends) -> bool:
    return ends[0] <= value <= ends[1]


def _distance(ours: Evidence, above: float, below: float) -> float:
    """By how much one value is above another, on the scale of the evidence; nan where no run got
    there."""
    if not (math.isfinite(above) and math.isfinite(below)):
        return math.nan
    if not ours.log:
        return above - below
    return math.log(above / below) if above > 0 < below else math.nan


def _judgement(verdict: Callable[[float], str], ours: Evidence, gap: float, why: str = ""
               ) -> Judgement:
    """The verdict at ALPHA and the least alpha at which it stands. gap: how far our value is from
    the one beyond which it would be another verdict."""
    word = verdict(ALPHA)
    if word == INCONCLUSIVE:
        needed = None if why else _needed(ours, gap)
        if not why and needed is None and math.isfinite(ours.value) and ours.sd > 0:
            why = "on the edge"
        return Judgement(word, needed=needed, why=why, leaning=verdict(0.5))
    low, high = math.log(LEAST_P), math.log(ALPHA)  # at `high` the verdict stands
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if verdict(math.exp(middle)) == word else (middle, high)
    return Judgement(word, math.exp(high))


def _needed(ours: Evidence, gap: float) -> int | None:
    """Seeds for POWER at a one-sided ALPHA, were the true value ours."""
    if math.isnan(ours.sd) and 1 < ours.n < ORDERED and not math.isnan(ours.value):
        return ORDERED  # by order statistics
    if not (math.isfinite(ours.value) and ours.sd > 0):
        return None
    ratio = (special.ndtri(1 - ALPHA) + special.ndtri(POWER)) * ours.sd / gap if gap else math.inf
    return math.ceil(ratio**2) + 1 if ratio**2 < MOST_NEEDED else None
