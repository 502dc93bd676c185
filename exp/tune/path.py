"""The runs of the ladder's preregistration: tune an arm, score its winner, move up a size.

python -m exp.tune.path ARM [ARM ...] --scale S [--horizons]
python -m exp.tune.path ARM [ARM ...] --scale M --from S
python -m exp.tune.path adamw muon --repeats | --auxiliary

Without --from, an arm is tuned along the path of exp.tune.coordinates, about 11 runs on the tuning
seed, and its winner runs on the scoring seeds. With --horizons, the winner also runs at 0.5, 0.7,
1.4 and 2 times the steps on two of these seeds, at 0.5 and 2 with the best of three rates. With
--from, the winner of that size is moved up as declared: constants stay, and the rates of Adam-like
rules and of the head fall with the width. Three rates run on the tuning seed, then the best one on
two scoring seeds.

Two modes run once beforehand. --repeats measures the noise of an arm at the center of its rates on
eight seeds. --auxiliary tunes the rates of embedding, head and vectors, which all arms share, by
the sum of the named arms' scores; config/ladder_adamw.toml then holds them.

The next trial is a pure function of the earlier ones, each of which has a run folder,
FOLDER/<scale>/tuning/<arm>/trial<k>, so that a killed command continues. Scores within one s.d. of
the repeats are ties; tie.json beside the trials records this number. All runs of a command share
one process, so that a model is compiled once.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from exp.tune.options import parse_path

if __name__ == "__main__":
    parse_path()  # answers --help and mistyped options before torch is imported

from exp.harness.arguments import BAD_INPUT, COMPLETED, DIVERGED, FAILED, INTERRUPTED
from exp.harness.config import load_settings
from exp.harness.errors import ConfigError
from exp.harness.folder import read_object
from exp.harness.recipes import ROOT
from exp.harness.task import task_named
from exp.harness.toml import read_toml, to_toml
from exp.jobs.finished import finished_run
from exp.jobs.here import Here
from exp.jobs.queue import Job, Stopped, run_jobs
from exp.report.forecast import forecast
from exp.report.statistics import deviation
from exp.tune.coordinates import (
    AUXILIARY_CAP,
    CAP,
    HORIZONS,
    TAU,
    Arm,
    NotTuned,
    Point,
    Trial,
    best,
    next_point,
    next_rates,
    overrides,
)
from exp.tune.space import significant

PLAN = ROOT / "exp" / "papers" / "ladder" / "preregistration.toml"
TASK = "ladder"
RETUNED = (0.5, 2.0)  # those of HORIZONS with rates of their own
NEAR = (0.5, 1.0, 2.0)  # factors of a rate tuned at another size or horizon
GROUPS = ("embedding", "head", "vector")  # parameter groups of the auxiliary AdamW
FEW = 2  # scoring seeds at another size or horizon than the tuning's


def arm_named(name: str, plan: dict) -> Arm:
    """Return a primary or secondary arm of the preregistration. Raises ConfigError for an unknown
    name."""
    arms = plan["arms"] | plan["secondary"]
    if name not in arms:
        raise ConfigError(f"unknown arm {name!r}; available: {', '.join(arms)}")
    arm = arms[name]
    ((key, values),) = arm["constant"].items()
    return Arm(name, arm["optimizer"], arm["rate"], key,
               tuple(tuple(value) if isinstance(value, list) else value for value in values),
               arm.get("adam_like", False), arm.get("decay", Arm.decay))


class RunFailed(Exception):
    """A run ended with an error that is not one of its settings."""


class Runs:
    """The runs of one arm at one scale, in this process. width: of the model."""

    def __init__(self, arm: Arm, scale: str, folder: Path, plan: dict,
                 changes: Sequence[str] = ()) -> None:
        self.arm, self.folder, self.seeds = arm, folder / scale, plan["setting"]["seeds"]
        self.sibling = lambda name: Runs(arm_named(name, plan), scale, folder, plan, changes)
        self.task = task_named(TASK)
        self.scale = (*self.task.scale(scale), *changes)
        settings = read_toml(self.task.config)
        auxiliary = settings["optimizer"]["adamw"]
        settings["optimizer"] = {**arm.optimizer, "adamw": auxiliary}
        self.config = self.folder / f"{arm.name}.toml"
        self.config.parent.mkdir(parents=True, exist_ok=True)
        self.config.write_text(to_toml(settings), encoding="utf-8")
        loaded = load_settings(self.config, [*self.scale, f"optimizer.lr={arm.rate}"], self.task)
        self.width = loaded["model"]["width"]
        if self.width != settings["model"]["width"]:  # at which the rates were tuned
            head = auxiliary["head"]["lr"] * settings["model"]["width"] / self.width
            self.scale += (f"optimizer.adamw.head.lr={significant(head)}",)
        self.auxiliary = tuple(auxiliary[group]["lr"] for group in GROUPS)
        self.epochs, self.of_epoch = loaded["experiment"]["epochs"], loaded["data"]["steps"]
        self.warmup = loaded["schedule"]["warmup_steps"]

    def job(self, part: str, name: str, point: Point, seed: int, horizon: float = 1.0,
            changes: Sequence[str] = ()) -> Job:
        """Return a run of this arm. horizon: factor of the number of steps. changes: further
        overrides."""
        steps = round(horizon * self.of_epoch)
        longer = () if horizon == 1 else (
            f"data.steps={steps}", f"schedule.warmup_steps={round(horizon * self.warmup)}")
        return Job(TASK, self.config, seed, self.folder / part / self.arm.name / name,
                   (*self.scale, *longer, *changes,
                    *overrides(self.arm, point, self.epochs * steps)))

    def score(self, part: str, name: str, point: Point, seed: int, horizon: float = 1.0,
              changes: Sequence[str] = ()) -> float:
        """Train a run, resume it, or read the finished one. Return its final bits per byte,
        infinite if it diverged. Arguments: see `job`.

        Raises ConfigError for a run that was refused, RunFailed for one that failed, and Stopped if
        interrupted.
        """
        job = self.job(part, name, point, seed, horizon, changes)
        if job.outcome() is None:
            status = run_jobs([job], Here())[job]
            if status == INTERRUPTED:
                raise Stopped
            if status not in (COMPLETED, DIVERGED):
                error = ConfigError if status == BAD_INPUT else RunFailed
                raise error(f"the run in {job.folder} failed: see its train.log")
        return self.result(job)

    def result(self, job: Job) -> float:
        """Return the final bits per byte of a finished run, infinite if it diverged."""
        finished = finished_run(job.folder, self.task)
        assert finished is not None  # the job has an outcome
        record = finished[0]
        return (record["curve"][self.task.primary.name][-1] if record["status"] == "completed"
                else math.inf)

    def tie(self, given: float | None = None) -> float:
        """Return the difference up to which scores are ties: the recorded one, `given`, or one s.d.
        of the repeats, and record it. Rules without repeats of their own take those of AdamW if
        they are Adam-like, else those of Muon.

        Raises ConfigError if repeats are missing, or if the arm was tuned with another number.
        """
        path = self.folder / "tuning" / self.arm.name / "tie.json"
        recorded = read_object(path).get("tie")
        if recorded is not None and given in (None, recorded):
            return recorded
        if recorded is not None:
            raise ConfigError(f"{self.arm.name} is being tuned with ties of {recorded} bits "
                              f"({path}), not of {given}")
        if given is None:
            given = self._noise()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"tie": given}) + "\n", encoding="utf-8")
        return given

    def _noise(self) -> float:
        source = "adamw" if self.arm.name == "adamw" or self.arm.adam_like else "muon"
        runs = self if self.arm.name == source else self.sibling(source)
        repeats = runs.repeated()
        missing = [job for job in repeats if job.outcome() != COMPLETED]
        if missing:
            raise ConfigError(
                f"ties are decided by the repeats of {source} at this size, of which "
                f"{len(missing)} of {len(repeats)} are missing in {self.folder}: run "
                f"python -m exp.tune.path {source} --repeats, or set --tie")
        return deviation([runs.result(job) for job in repeats])

    def tune(self, tie: float) -> Trial:
        """Run all trials of the path and return the winner. Raises NotTuned."""
        trials: list[Trial] = []
        (seed,) = self.seeds["tuning"]
        while (point := next_point(self.arm, trials, tie)) is not None:
            trials.append(Trial(point, self.score("tuning", f"trial{len(trials)}", point, seed)))
            print(f"{self.arm.name} trial {len(trials) - 1}: {point} {trials[-1].score:.4f}",
                  flush=True)
        return best(trials, tie)

    def repeats(self) -> list[float]:
        """Return the scores at the center of the rates on the seeds of the repeats."""
        return [self.score("repeats", job.folder.name, Point(self.arm.rate, TAU), job.seed)
                for job in self.repeated()]

    def repeated(self) -> list[Job]:
        """Return the runs of `repeats`."""
        return [self.job("repeats", f"seed{seed}", Point(self.arm.rate, TAU), seed)
                for seed in self.seeds["repeats"]]

    def near(self, point: Point, tie: float, horizon: float = 1.0) -> Point:
        """Return the best of three rates around a setting, on the tuning seed."""
        (seed,) = self.seeds["tuning"]
        rates = [significant(point.rate * factor) for factor in NEAR]
        return best([Trial(moved, self.score(
            "tuning", f"x{horizon:g}_rate{moved.rate:g}", moved, seed, horizon))
            for moved in (replace(point, rate=rate) for rate in rates)], tie).point

    def moved_up(self, point: Point, tie: float, width: int) -> Point:
        """Return the winner of a tuning at another width, `point`, moved to this size."""
        narrowing = width / self.width if self.arm.adam_like else 1.0
        return self.near(replace(point, rate=significant(point.rate * narrowing)), tie)

    def scoring(self, point: Point, most: int | None = None) -> list[float]:
        """Return the scores of a setting on the scoring seeds, at most the first `most`; on eight
        seeds if one of all diverges."""
        eight = self.seeds["scoring_adamw_muon"]
        seeds = eight if self.arm.name in ("adamw", "muon") else self.seeds["scoring"]
        scores = {seed: self.score("scoring", f"seed{seed}", point, seed) for seed in seeds[:most]}
        if most is None and math.inf in scores.values():
            scores |= {seed: self.score("scoring", f"seed{seed}", point, seed)
                       for seed in eight if seed not in scores}
        return list(scores.values())

    def horizons(self, point: Point, tie: float) -> dict[float, list[float]]:
        """Return the scores of a setting at other numbers of steps: factor -> score per seed."""
        scores = {}
        for horizon in HORIZONS:
            chosen = self.near(point, tie, horizon) if horizon in RETUNED else point
            scores[horizon] = [self.score("horizons", f"seed{seed}_x{horizon:g}", chosen, seed,
                                          horizon) for seed in self.seeds["scoring"][:FEW]]
        return scores


def tune_auxiliary(arms: Sequence[Runs]) -> tuple[float, ...]:
    """Return the rates of GROUPS with the least sum of the arms' scores on the tuning seed. Each
    arm runs at the center of its rates."""
    scores: dict[tuple[float, ...], float] = {}
    start = arms[0].auxiliary
    while (rates := next_rates(start, scores)) is not None:
        changes = [f"optimizer.adamw.{group}.lr={rate}"
                   for group, rate in zip(GROUPS, rates, strict=True)]
        name = "auxiliary" + "".join(f"_{rate:g}" for rate in rates)
        scores[rates] = sum(runs.score("tuning", name, Point(runs.arm.rate, TAU),
                                       runs.seeds["tuning"][0], changes=changes) for runs in arms)
        print(f"auxiliary {dict(zip(GROUPS, rates, strict=True))} {scores[rates]:.4f}", flush=True)
    return min(scores, key=lambda rates: scores[rates])


def tune_and_score(arms: Sequence[Runs], tuned_at: Sequence[Runs], options: argparse.Namespace
                   ) -> int:
    """Tune, score and, with --horizons, extend every arm, and print the scores. tuned_at: the same
    arms at the size of the tuning. Return the exit status: 1 if an arm is not tuned or a run
    failed, which stops its arm alone."""
    status = COMPLETED
    for runs, below in zip(arms, tuned_at, strict=True):
        try:
            tie, moved = below.tie(options.tie), runs is not below
            point = below.tune(tie).point
            point = runs.moved_up(point, tie, below.width) if moved else point
            scores = runs.scoring(point, FEW if moved else None)
            print(f"{runs.arm.name}: {point} {in_words(scores)}", flush=True)
            for horizon, scores in (runs.horizons(point, tie) if options.horizons else {}).items():
                print(f"{runs.arm.name} x {horizon:g}: {in_words(scores)}", flush=True)
        except (NotTuned, RunFailed) as error:
            word = "not tuned" if isinstance(error, NotTuned) else "error"
            print(f"{word}, so {runs.arm.name} is not scored: {error}", file=sys.stderr)
            status = FAILED
    return status


def repeat(arms: Sequence[Runs]) -> int:
    """Run and print the repeats of every arm. Return the exit status: 1 if a run failed, which
    stops its arm alone."""
    status = COMPLETED
    for runs in arms:
        try:
            print(f"{runs.arm.name}: {in_words(runs.repeats())}", flush=True)
        except RunFailed as error:
            print(f"error: {error}", file=sys.stderr)
            status = FAILED
    return status


def in_words(scores: Sequence[float]) -> str:
    """Return the scores, bits per byte, as text."""
    return " ".join(f"{score:.4f}" for score in scores)


def durations(options: argparse.Namespace, plan: dict) -> dict[str, float | None]:
    """Return an upper bound of the seconds of the missing runs, from the arm's longest finished run
    at its size; None without one. Runs whose settings depend on earlier scores are one entry."""
    known: dict[str, float | None] = {}
    seeds = plan["setting"]["seeds"]
    for name in options.arms:
        arm_named(name, plan)
        scoring = seeds["scoring_adamw_muon" if name in ("adamw", "muon") else "scoring"]
        parts: list[tuple[str, str, str, int, float]]  # scale, part, runs, at most, factor of steps
        if options.auxiliary:
            parts = [(options.scale, "tuning", "auxiliary*", AUXILIARY_CAP, 1)]
        elif options.repeats:
            parts = [(options.scale, "repeats", f"seed{seed}", 1, 1) for seed in seeds["repeats"]]
        else:
            parts = [(options.below or options.scale, "tuning", "trial*", CAP, 1)]
            parts += [(options.scale, "tuning", f"x{factor:g}_rate*", len(NEAR), factor)
                      for factor in ((1.0,) if options.below else ())
                      + (RETUNED if options.horizons else ())]
            parts += [(options.scale, "scoring", f"seed{seed}", 1, 1)
                      for seed in scoring[:FEW if options.below else None]]
            parts += [(options.scale, "horizons", f"seed{seed}_x{horizon:g}", 1, horizon)
                      for horizon in HORIZONS if options.horizons
                      for seed in seeds["scoring"][:FEW]]
        is_tuned = bool(_finished(options.folder / options.scale / "scoring" / name, "seed*"))
        for scale, part, runs, most, factor in parts:
            missing = most - len(_finished(options.folder / scale / part / name, runs))
            if missing > 0 and not (is_tuned and runs in ("trial*", "x1_rate*")):
                timed = [seconds for folder in (options.folder / scale).glob(f"*/{name}")
                         for seconds in _finished(folder, "*")]
                words = runs if most == 1 else f"{runs}, at most {missing} runs"
                known[f"{name} {scale} {part} {words}"] = (
                    missing * factor * max(timed) if timed else None)
    return known


def _finished(folder: Path, runs: str) -> list[float]:
    """Return the seconds of each finished run of a folder. runs: pattern of their names."""
    summaries = [read_object(path) for path in folder.glob(f"{runs}/summary.json")
                 if ".other" not in path.parent.name]
    return [summary["wall_seconds"] for summary in summaries
            if summary.get("status") in ("completed", "diverged") and "wall_seconds" in summary]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Return the exit status: 0, 1 an arm is not tuned or a run failed, 2 bad
    input, 130 Ctrl-C."""
    options = parse_path(arguments)
    plan = read_toml(PLAN)

    def at(scale: str) -> list[Runs]:
        return [Runs(arm_named(name, plan), scale, options.folder, plan, options.set)
                for name in options.arms]

    try:
        if options.dry_run:
            print(forecast(durations(options, plan)))
            return COMPLETED
        arms = at(options.scale)
        if options.auxiliary:
            print(f"best: {dict(zip(GROUPS, tune_auxiliary(arms), strict=True))}")
        elif options.repeats:
            return repeat(arms)
        else:
            return tune_and_score(arms, at(options.below) if options.below else arms, options)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except (Stopped, KeyboardInterrupt):
        return INTERRUPTED
    return COMPLETED


if __name__ == "__main__":
    sys.exit(main())
