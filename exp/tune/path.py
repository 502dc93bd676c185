"""The tuning path of the ladder's preregistration: one arm, a declared order of about 11 runs.

python -m exp.tune.path ARM [ARM ...] --scale S --folder outputs/ladder

    1. rate:     5 points, factor 2; at an edge on until it is none, 3 more at most
    2. decay:    tau = rate x decay x steps, 3 so far, also 1 and 8, and one more beyond an edge;
                 a rule on the ball has no decay: the gain of its first weights, 1 so far, also 1.5
    3. rate:     x 2^0.5 and x 2^-0.5
    4. constant: the two declared values

Then the winner is trained on the scoring seeds. The next trial is a pure function of those before
it, each of which is a run folder, FOLDER/<scale>/tuning/<arm>/trial<k>: a path that was killed
continues. All runs of the command share one process, so that a model is compiled once.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from exp.harness.arguments import BAD_INPUT, COMPLETED, DIVERGED, FAILED, INTERRUPTED
from exp.harness.config import load_settings
from exp.harness.errors import ConfigError
from exp.harness.recipes import ROOT
from exp.harness.task import task_named
from exp.harness.toml import overrides_of, read_toml, to_toml
from exp.jobs.finished import finished_run
from exp.jobs.here import Here
from exp.jobs.queue import Job, Stopped, run_jobs
from exp.tune.space import significant

PLAN = ROOT / "exp" / "papers" / "ladder" / "preregistration.toml"
TASK = "ladder"
TAU, TAUS, BEYOND = 3.0, (1.0, 8.0), {1.0: 0.4, 8.0: 20.0}
GAIN, GAINS = 1.0, (1.5,)
MORE_RATES, CAP = 3, 14
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
    rates, the key of the declared constant and its two values."""

    name: str
    optimizer: dict
    rate: float
    key: str = ""
    values: tuple = field(default=())

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


def _path(arm: Arm, trials: Sequence[Trial], tie: float):
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
    settings = {"optimizer": {"lr": point.rate}}
    if arm.on_ball:
        settings["model"] = {"projection_gain": 1.0, "hidden_gain": point.decay}
    else:
        settings["optimizer"]["weight_decay"] = significant(point.decay / (point.rate * steps))
    constant = () if point.constant is None else (f"{arm.key}={json.dumps(point.constant)}",)
    return overrides_of(settings) + constant


# --- runs


def arm_named(name: str, plan: dict) -> Arm:
    """An arm of the preregistration. Raises ConfigError for a name that is not there."""
    if name not in plan["arms"]:
        raise ConfigError(f"no arm {name!r}; arms: {', '.join(plan['arms'])}")
    arm = plan["arms"][name]
    ((key, values),) = arm["constant"].items()
    return Arm(name, arm["optimizer"], arm["rate"], key,
               tuple(tuple(value) if isinstance(value, list) else value for value in values))


class Runs:
    """The runs of one arm at one scale, in this process."""

    def __init__(self, arm: Arm, scale: str, folder: Path, plan: dict,
                 changes: Sequence[str] = ()) -> None:
        self.arm, self.folder, self.seeds = arm, folder / scale, plan["setting"]["seeds"]
        self.task = task_named(TASK)
        self.scale = (*self.task.scale(scale), *changes)
        settings = read_toml(self.task.config)
        settings["optimizer"] = {**arm.optimizer, "adamw": settings["optimizer"]["adamw"]}
        self.config = self.folder / f"{arm.name}.toml"
        self.config.parent.mkdir(parents=True, exist_ok=True)
        self.config.write_text(to_toml(settings), encoding="utf-8")
        loaded = load_settings(self.config, [*self.scale, f"optimizer.lr={arm.rate}"], self.task)
        self.steps = loaded["experiment"]["epochs"] * loaded["data"]["steps"]

    def score(self, part: str, name: str, point: Point, seed: int) -> float:
        """Train, or continue, or read what is finished; infinite if it diverged.

        Raises ConfigError for a run that was refused or failed.
        """
        job = Job(TASK, self.config, seed, self.folder / part / self.arm.name / name,
                  (*self.scale, *overrides(self.arm, point, self.steps)))
        if job.outcome() is None:
            status = run_jobs([job], Here())[job]
            if status == INTERRUPTED:
                raise Stopped
            if status not in (COMPLETED, DIVERGED):
                raise ConfigError(f"{job.folder} has not ended: see its train.log")
        record = finished_run(job.folder, self.task)[0]
        curve = record["curve"][self.task.primary.name]
        return curve[-1] if record["status"] == "completed" else math.inf

    def tune(self, tie: float) -> Trial:
        """The whole path; its winner. Raises NotTuned."""
        trials: list[Trial] = []
        (seed,) = self.seeds["tuning"]
        while (point := next_point(self.arm, trials, tie)) is not None:
            trials.append(Trial(point, self.score("tuning", f"trial{len(trials)}", point, seed)))
            print(f"{self.arm.name} trial {len(trials) - 1}: {point} {trials[-1].score:.4f}",
                  flush=True)
        return best(trials, tie)

    def scoring(self, point: Point) -> list[float]:
        """The scores of a setting on the scoring seeds."""
        key = "scoring_adamw_muon" if self.arm.name in ("adamw", "muon") else "scoring"
        return [self.score("scoring", f"seed{seed}", point, seed) for seed in self.seeds[key]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0, 1 an arm is not tuned, 2 bad input, 130 Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m exp.tune.path")
    parser.add_argument("arms", nargs="+", metavar="ARM")
    parser.add_argument("--scale", default="S")
    parser.add_argument("--folder", type=Path, default=Path("outputs/ladder"))
    parser.add_argument("--tie", type=float, default=0.0, metavar="BITS",
                        help="s.d. of the repeats: scores this close are equal")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE")
    options = parser.parse_args(arguments)
    plan, status = read_toml(PLAN), COMPLETED
    try:
        for arm in [arm_named(name, plan) for name in options.arms]:
            runs = Runs(arm, options.scale, options.folder, plan, options.set)
            try:
                winner = runs.tune(options.tie)
            except NotTuned as error:
                print(f"not tuned, and not scored: {error}", file=sys.stderr)
                status = FAILED
                continue
            scores = runs.scoring(winner.point)
            print(f"{arm.name}: {winner.point} {' '.join(f'{score:.4f}' for score in scores)}")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except (Stopped, KeyboardInterrupt):
        return INTERRUPTED
    return status


if __name__ == "__main__":
    sys.exit(main())
