"""Coverage of a board's intervals and the share of wrong directions, by simulation.

python -m exp.tune.coverage [--worlds N] [--boards N]

A world draws, per optimizer, the log cost over the unit cube of the four axes: a basin with a cliff
at high rates, beyond which runs diverge. A study searches it with twelve trials (the center, three
points shared by all optimizers, then Gaussian steps around the best trial, in place of the Gaussian
process, which is too slow for thousands of studies) and reruns its best setting on two seeds. The
true ratio of an optimizer is the mean over TRUTH further studies of its world. Every board of six
studies passes through the estimator of real boards. The deviation of paired log ratios is about
that of modular addition in "race, hard", and of Wikitext-2 in "race, easy" and "anneal".
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exp.harness.arguments import positive
from exp.tune.estimate import results
from exp.tune.inference import Ladder

ARMS, STUDIES, TRIALS, SEEDS, START = 12, 6, 12, 2, 4
TRUTH = 1000  # studies behind the true ratios of a world
CAP = 3200
STEP = 0.12  # standard deviation of a step around the best trial, in unit coordinates
CLIFF = 0.28  # distance above the best rate, in unit coordinates, from which runs diverge
COMMON = 0.04  # standard deviation of the part of the noise that all optimizers of a study share
LADDER = {"adamw_half": 0.5, "adamw_double": 2.0}
SHIFTS = {"adamw_half": 0.277, "adamw_double": -0.181}  # log metric, as on Wikitext-2's board
WORST = 3.0  # log metric of a diverged run, above the best


@dataclass(frozen=True)
class World:
    """Constants of a world. curvatures: of log cost along and across the ridge of rate and decay
    time, along AdamW's rate, and along memory. width: distance of the best settings from the
    center. noise: standard deviation of log cost over seeds. slow: (share, standard deviation) of
    runs that take longer. cost: typical lowest cost. scale: of log cost in the log metric, 0
    in a race."""

    curvatures: tuple[float, float, float, float]
    width: float
    noise: float
    slow: tuple[float, float] = (0.0, 0.0)
    cost: float = 400.0
    scale: float = 0.0


WORLDS = {
    "race, hard": World((120.0, 20.0, 6.0, 1.0), 0.2, 0.13, (0.05, 0.5), 400.0),
    "race, easy": World((14.0, 3.0, 1.5, 0.4), 0.1, 0.07, (0.02, 0.3), 250.0),
    "anneal": World((14.0, 3.0, 1.5, 0.4), 0.1, 0.018, scale=0.45)}


def simulate(world: World, studies: int, rng: np.random.Generator) -> np.ndarray:
    """Return the log cost of each fresh run, infinite for a diverged one, of one drawn world:
    (optimizers, studies, SEEDS). In an annealed world the last two are AdamW at other budgets."""
    level = rng.normal(0, 0.3, ARMS)
    best = 0.5 + rng.normal(0, world.width, 4) + rng.normal(0, 0.1, (ARMS, 4))
    curvature = np.array(world.curvatures) * np.exp(rng.uniform(-0.25, 0.25, (ARMS, 4)))
    if world.scale:
        rows = [*range(ARMS), 0, 0]
        level, best, curvature = level[rows], best[rows], curvature[rows]
        level[-2:] += np.array(list(SHIFTS.values())) / world.scale
    best, curvature = best[:, None], curvature[:, None]

    def log_cost(point: np.ndarray, common: np.ndarray) -> np.ndarray:
        off = point - best
        ridge = np.stack([off[..., 0] + off[..., 1], off[..., 0] - off[..., 1], *off.T[2:].swapaxes(
            1, 2)], -1) * [0.5**0.5, 0.5**0.5, 1, 1]
        squared = (curvature * ridge**2).sum(-1)
        excess = np.where(squared < 1, squared, 2 * np.sqrt(squared) - 1)  # Huber
        share, spread = world.slow
        late = (rng.random(excess.shape) < share) * np.abs(rng.normal(0, spread, excess.shape))
        noise = rng.normal(0, world.noise, excess.shape)
        cost = np.log(world.cost) + level[:, None] + excess + noise + late + common
        return np.where(off[..., 0] > CLIFF, np.inf, cost)

    def shared(deviation: float) -> np.ndarray:
        return rng.normal(0, deviation, (1, studies))

    common = COMMON * (world.scale == 0)
    points = np.full((len(level), studies, 4), 0.5)
    winner, least = points, log_cost(points, shared(common))
    for trial in range(1, TRIALS):
        step, anywhere = rng.normal(0, STEP, (1, studies, 4)), rng.random((1, studies, 4))
        around = np.isfinite(least) & (trial >= START)
        points = np.where(around[..., None], np.clip(winner + step, 0, 1), anywhere)
        cost = log_cost(points, shared(common))
        better = cost < least
        winner, least = np.where(better[..., None], points, winner), np.minimum(cost, least)
    return np.stack([log_cost(winner, shared(common)) for _ in range(SEEDS)], -1)


def board(world: World, runs: np.ndarray) -> tuple[dict, dict]:
    """Return (terms, arms) of a board in the form of its JSON. runs: as from `simulate`."""
    names = ["adamw", *(f"arm{number}" for number in range(1, ARMS)), *LADDER][:len(runs)]
    race = not world.scale
    terms = {"regime": "race" if race else "anneal", "baseline": "adamw", "noise_arm": None,
             "ladder": {} if race else LADDER, "targets": [1.0] if race else [], "main_target": 1.0,
             "mode": "max" if race else "min", "hold": 1, "linger": 0, "cap": CAP, "worst": WORST,
             "studies": runs.shape[1], "alpha": 0.05}

    def run(log_cost: float) -> dict:
        cost = np.exp(log_cost) if race else CAP
        metric = 1.0 if race else np.exp(world.scale * (log_cost - np.log(world.cost)))
        fine = np.isfinite(log_cost)
        return {"status": "completed" if fine else "diverged", "curve": {
            "evaluations": [float(cost)] if fine else [],
            "metric": [float(metric)] if fine else []}}

    return terms, {name: {"studies": [{"trials": [], "fresh": list(map(run, study))}
                                      for study in of_arm]}
                   for name, of_arm in zip(names, runs, strict=True)}


def means(world: World, runs: np.ndarray) -> np.ndarray:
    """Return the mean value of a study, per optimizer: of log cost restricted to the cap, or of the
    log metric."""
    values = (np.minimum(runs, np.log(CAP)) if not world.scale else
              np.minimum(world.scale * (runs - np.log(world.cost)), WORST))
    return values.mean((1, 2))


def tally(world: World, boards: int, rng: np.random.Generator) -> np.ndarray:
    """Return counts over `boards` boards of one drawn world: intervals that cover the true ratio,
    intervals, those of budgets that cover, budgets, verdicts against the truth, verdicts, ordered
    pairs against the truth, ordered pairs, misses, runs, sum of pooled variances, boards."""
    runs = simulate(world, TRUTH + boards * STUDIES, rng)
    truth = means(world, runs[:, :TRUTH])
    counts = np.zeros(12)
    for first in range(TRUTH, runs.shape[1], STUDIES):
        terms, arms = board(world, runs[:, first:first + STUDIES])
        true = dict(zip(arms, truth, strict=True))
        found = results(terms, arms)
        rows = {name: row for name, row in found["arms"].items() if "ratio" in row}
        ladder = Ladder.of(terms, {name: [value] for name, value in true.items()})
        for name, row in rows.items():
            difference = true[name] - true["adamw"]
            counts[:2] += row["low"] <= np.exp(difference) <= row["high"], 1
            if ladder and "budget" in row:
                _, low, high = row["budget"]
                counts[2:4] += low <= ladder.budget(difference) <= high, 1
            if row["verdict"] in ("cheaper", "dearer"):
                counts[4:6] += (row["verdict"] == "dearer") != (difference > 0), 1
        for pair in found["pairs"]:
            if pair["ordered"]:
                counts[6:8] += pair["log_ratio"] * (true[pair["a"]] - true[pair["b"]]) < 0, 1
        reached, of = np.sum([row["reached"] for row in found["arms"].values()], 0)
        counts[8:] += of - reached, of, found["pooled_sd"] ** 2, 1
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line per world. Return 0."""
    parser = argparse.ArgumentParser(prog="python -m exp.tune.coverage", description=(
        "Simulate boards and print the coverage of their 95 % intervals."))
    parser.add_argument("--worlds", type=positive, default=20, metavar="N", help="(default: 20)")
    parser.add_argument("--boards", type=positive, default=10, metavar="N",
                        help="boards per world (default: 10)")
    options = parser.parse_args(arguments)
    for name, world in WORLDS.items():
        rng = np.random.default_rng(0)
        per_world = np.array([tally(world, options.boards, rng) for _ in range(options.worlds)])
        counts = per_world.sum(0)
        spread = (per_world[:, 0] / per_world[:, 1]).std(ddof=1) / len(per_world)**0.5
        share = counts[::2] / np.maximum(counts[1::2], 1)
        budgets = f", of budgets {share[1]:.3f}" * bool(counts[3])
        print(f"{name}: coverage {share[0]:.3f} (standard error {spread:.3f}){budgets}; wrong "
              f"verdicts {counts[4]:.0f} of {counts[5]:.0f}, wrong pairs {counts[6]:.0f} of "
              f"{counts[7]:.0f}; misses {share[4]:.0%} of the fresh runs, deviation of a paired "
              f"log ratio {share[5]**0.5:.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
