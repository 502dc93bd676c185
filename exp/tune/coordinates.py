"""The preregistered tuning of the ladder, one coordinate after another: a pure function of trials.

    1. rate:     5 points, factor 2; while the best is at an edge, one more (at most 3)
    2. decay:    tau = rate x decay x steps is 3 in step 1; now also 1 and 8, and one value beyond
                 if the best is at an edge. A rule on the ball has no decay, but a gain of its
                 initial weights, 1 in step 1; now also 1.5
    3. rate:     x 2^0.5 and x 2^-0.5
    4. constant: the two declared values

The rates of the auxiliary AdamW are tuned once for all arms, over neighbors of the best triple.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from exp.tune.space import significant

TAU, TAUS, BEYOND = 3.0, (1.0, 8.0), {1.0: 0.4, 8.0: 20.0}
GAIN, GAINS = 1.0, (1.5,)
FIRST_RATES, MORE_RATES, CAP = 5, 3, 14
AUXILIARY_CAP = 12
BALL = "hyperball"
HORIZONS = (0.5, 0.7, 1.4, 2.0)  # of AdamW's and Muon's winner, factors of the number of steps


class NotTuned(Exception):
    """The best rate is still at an edge of the grid after the last extension."""


@dataclass(frozen=True)
class Point:
    """The settings of a trial: the rate; tau, or the gain of a rule on the ball; the value of the
    declared constant, None for its value before step 4."""

    rate: float
    decay: float
    constant: object = None


@dataclass(frozen=True)
class Trial:
    """A finished trial. score: lower is better, infinite for a diverged run."""

    point: Point
    score: float


@dataclass(frozen=True)
class Arm:
    """An arm of the preregistration. optimizer: its `[optimizer]` table without rate and decay.
    rate: the center of its rates. key, values: the declared constant and its two values. adam_like:
    the rate falls with the width of the model. decay: the key of the weight decay."""

    name: str
    optimizer: dict
    rate: float
    key: str = ""
    values: tuple = field(default=())
    adam_like: bool = False
    decay: str = "optimizer.weight_decay"

    @property
    def on_ball(self) -> bool:
        """Whether the norms of the matrices are kept constant (hyperball)."""
        return BALL in self.optimizer


def next_point(arm: Arm, trials: Sequence[Trial], tie: float = 0.0) -> Point | None:
    """Return the point of the next trial after `trials`; None at the end of the path.

    tie: scores that differ by at most this are equal, and the smaller rate wins. Raises NotTuned.
    """
    known = {trial.point for trial in trials}
    for point in _path(arm, trials, tie):
        if point not in known:
            return point if len(trials) < CAP else None
    return None


def best(trials: Sequence[Trial], tie: float = 0.0) -> Trial:
    """Return the winner: of the scores within `tie` of the least, that with the smallest rate."""
    least = min(trial.score for trial in trials)
    return min((trial for trial in trials if trial.score <= least + tie),
               key=lambda trial: trial.point.rate)


def _path(arm: Arm, trials: Sequence[Trial], tie: float) -> Iterator[Point]:
    """Yield the points in order, as far as the trials determine them."""
    start = GAIN if arm.on_ball else TAU
    done = {trial.point: trial for trial in trials}

    def of(points: list[Point]) -> list[Trial]:
        return [done[point] for point in points if point in done]

    points = [Point(significant(arm.rate * 2.0**k), start) for k in range(-2, 3)]
    yield from points
    for _ in range(MORE_RATES + 1):
        rates = sorted(point.rate for point in points)
        best_rate = best(of(points), tie).point.rate
        if best_rate not in (rates[0], rates[-1]):
            break
        if len(points) == FIRST_RATES + MORE_RATES:
            raise NotTuned(f"{arm.name}: after {len(points)} rates the best one, {best_rate}, is "
                           "still the lowest or the highest")
        points.append(Point(significant(
            best_rate / 2 if best_rate == rates[0] else best_rate * 2), start))
        yield points[-1]
    chosen = best(of(points), tie).point
    decays = [chosen, *(Point(chosen.rate, decay) for decay in (GAINS if arm.on_ball else TAUS))]
    yield from decays
    best_decay = best(of(decays), tie).point.decay
    if not arm.on_ball and best_decay in BEYOND:
        decays.append(Point(chosen.rate, BEYOND[best_decay]))
        yield decays[-1]
    chosen = best(of(decays), tie).point
    near = [chosen, *(Point(significant(chosen.rate * factor), chosen.decay)
                      for factor in (2**0.5, 2**-0.5))]
    yield from near
    chosen = best(of(near), tie).point
    yield from (Point(chosen.rate, chosen.decay, value) for value in arm.values)


def overrides(arm: Arm, point: Point, steps: int) -> tuple[str, ...]:
    """Return the overrides, as KEY=VALUE, of a trial of `steps` steps."""
    settings = {"optimizer.lr": point.rate}
    if arm.on_ball:
        settings |= {"model.projection_gain": 1.0, "model.hidden_gain": point.decay}
    else:
        settings[arm.decay] = significant(point.decay / (point.rate * steps))
    constant = () if point.constant is None else (f"{arm.key}={json.dumps(point.constant)}",)
    return (*(f"{key}={value}" for key, value in settings.items()), *constant)


def next_rates(start: tuple[float, ...], scores: Mapping[tuple[float, ...], float]
               ) -> tuple[float, ...] | None:
    """Return the next rates of the auxiliary groups: the first neighbor of the best ones, with one
    rate doubled or halved, that has no score yet. None if there is none, or after AUXILIARY_CAP."""
    if not scores:
        return start
    if len(scores) == AUXILIARY_CAP:
        return None
    center = min(scores, key=lambda rates: scores[rates])
    neighbors = ((*center[:place], significant(center[place] * factor), *center[place + 1:])
                 for place in range(len(center)) for factor in (2.0, 0.5))
    return next((rates for rates in neighbors if rates not in scores), None)
