"""The declared order of the ladder's tuning, by coordinates: a pure function of the trials.

    1. rate:     5 points, factor 2; at an edge on until it is none, 3 more at most
    2. decay:    tau = rate x decay x steps, 3 so far, also 1 and 8, and one more beyond an edge;
                 a rule on the ball has no decay: the gain of its first weights, 1 so far, also 1.5
    3. rate:     x 2^0.5 and x 2^-0.5
    4. constant: the two declared values

The rates of the auxiliary AdamW are tuned once for all arms, by the neighbours of the best triple.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from exp.tune.space import significant

TAU, TAUS, BEYOND = 3.0, (1.0, 8.0), {1.0: 0.4, 8.0: 20.0}
GAIN, GAINS = 1.0, (1.5,)
MORE_RATES, CAP = 3, 14
AUXILIARY_CAP = 12
BALL = "hyperball"


class NotTuned(Exception):
    """The best rate is still at an edge of the grid after the last extension."""


@dataclass(frozen=True)
class Point:
    """What a trial sets: the rate; tau, or the gain of a rule on the ball; the declared constant,
    None for its first value."""

    rate: float
    decay: float
    constant: object = None


@dataclass(frozen=True)
class Trial:
    """A finished trial; score: less is better, infinite for a run that diverged."""

    point: Point
    score: float


@dataclass(frozen=True)
class Arm:
    """An arm of the preregistration: its `[optimizer]` without rate and decay, the centre of the
    rates, the key of the declared constant and its two values. adam_like: its rate falls with the
    width of the model. decay: the key of the weight decay."""

    name: str
    optimizer: dict
    rate: float
    key: str = ""
    values: tuple = field(default=())
    adam_like: bool = False
    decay: str = "optimizer.weight_decay"

    @property
    def on_ball(self) -> bool:
        """Whether the norms of the matrices are kept."""
        return BALL in self.optimizer


def next_point(arm: Arm, trials: Sequence[Trial], tie: float = 0.0) -> Point | None:
    """The next trial after `trials`, in order; None at the end of the path.

    tie: scores this close are equal, and the smaller rate wins. Raises NotTuned.
    """
    known = {trial.point for trial in trials}
    for point in _path(arm, trials, tie):
        if point not in known:
            return point if len(trials) < CAP else None
    return None


def best(trials: Sequence[Trial], tie: float = 0.0) -> Trial:
    """The winner: of the scores within `tie` of the least, the one with the smallest rate."""
    least = min(trial.score for trial in trials)
    return min((trial for trial in trials if trial.score <= least + tie),
               key=lambda trial: trial.point.rate)


def _path(arm: Arm, trials: Sequence[Trial], tie: float) -> Iterator[Point]:
    """The points in order, as far as the trials decide them."""
    start = GAIN if arm.on_ball else TAU
    done = {trial.point: trial for trial in trials}

    def of(points: list[Point]) -> list[Trial]:
        return [done[point] for point in points if point in done]

    points = [Point(significant(arm.rate * 2.0**k), start) for k in range(-2, 3)]
    yield from points
    for _ in range(MORE_RATES + 1):
        rates = sorted(point.rate for point in points)
        at = best(of(points), tie).point.rate
        if at not in (rates[0], rates[-1]):
            break
        if len(points) == 5 + MORE_RATES:
            raise NotTuned(f"{arm.name}: the best rate is {at} after {len(points)} rates")
        points.append(Point(significant(at / 2 if at == rates[0] else at * 2), start))
        yield points[-1]
    chosen = best(of(points), tie).point
    decays = [chosen, *(Point(chosen.rate, decay) for decay in (GAINS if arm.on_ball else TAUS))]
    yield from decays
    at = best(of(decays), tie).point.decay
    if not arm.on_ball and at in BEYOND:
        decays.append(Point(chosen.rate, BEYOND[at]))
        yield decays[-1]
    chosen = best(of(decays), tie).point
    near = [chosen, *(Point(significant(chosen.rate * factor), chosen.decay)
                      for factor in (2**0.5, 2**-0.5))]
    yield from near
    chosen = best(of(near), tie).point
    yield from (Point(chosen.rate, chosen.decay, value) for value in arm.values)


def overrides(arm: Arm, point: Point, steps: int) -> tuple[str, ...]:
    """The settings of a trial of that many steps."""
    settings = {"optimizer.lr": point.rate}
    if arm.on_ball:
        settings |= {"model.projection_gain": 1.0, "model.hidden_gain": point.decay}
    else:
        settings[arm.decay] = significant(point.decay / (point.rate * steps))
    constant = () if point.constant is None else (f"{arm.key}={json.dumps(point.constant)}",)
    return (*(f"{key}={value}" for key, value in settings.items()), *constant)


def next_rates(start: tuple[float, ...], scores: Mapping[tuple[float, ...], float]
               ) -> tuple[float, ...] | None:
    """The next rates of the auxiliary groups to try: the first neighbour of the best ones, one rate
    doubled or halved, that has no score yet; None at the end."""
    if not scores:
        return start
    if len(scores) == AUXILIARY_CAP:
        return None
    at = min(scores, key=lambda rates: scores[rates])
    neighbours = ((*at[:place], significant(at[place] * factor), *at[place + 1:])
                  for place in range(len(at)) for factor in (2.0, 0.5))
    return next((rates for rates in neighbours if rates not in scores), None)
