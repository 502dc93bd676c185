"""Learning-rate sweeps on small tasks, and statistics of the resulting grids of losses.

A grid is {learning rate: [loss per seed]}, None for a diverged run, as returned by `Rows.tree`.
"""

import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from exp.harness.schedule import Schedule, ScheduleName
from exp.harness.task import task_named
from exp.report.evidence import Evidence, sample
from exp.report.rows import Row, Rows, rows_of
from exp.report.statistics import Estimate, geometric_mean, mean
from exp.theory.training import built, steps

FACTOR, LONGEST = 2.0, 16  # ratio of neighboring rates of a grid, and its largest number of rates
STEPS, WARMUP = 150, 0.1  # steps of a run, and the fraction of them that warms up
EVERY = 5  # steps between points of a curve
HELD_OUT = {"wikitext2": 128, "cifar": 2000, "grokking": 1000}  # sequences, images, pairs

Grid = dict[float, list[float | None]]


# --- optimizers, by learning rate


def sgd(lr: float) -> dict:
    """SGD with momentum 0.9."""
    return {"name": "sgd", "lr": lr, "momentum": 0.9}


def adamw(lr: float, **keys: object) -> dict:
    """AdamW with the settings of the mini tasks."""
    return {"name": "adamw", "lr": lr, "betas": [0.9, 0.95], "weight_decay": 0.1, **keys}


def muon(lr: float, **keys: object) -> dict:
    """Muon, with AdamW at 0.15 times its rate for the rest, so that one rate sets both."""
    return {"name": "muon", "lr": lr, "weight_decay": 0.1, "adamw": rest(0.15 * lr), **keys}


def lion(lr: float) -> dict:
    """Lion with ten times the decay of `adamw`, for a rate of a tenth."""
    return {"name": "lion", "lr": lr, "weight_decay": 1.0}


def rest(lr: float) -> dict:
    """AdamW's settings for parameters that are not hidden matrices."""
    return {"lr": lr, "betas": [0.9, 0.95], "weight_decay": 0.1}


# --- runs


def curve(optimizer: dict, seed: int, task: str = "wikitext2", *, count: int = STEPS,
          batch_size: int | None = None, warmup: float = WARMUP, schedule: ScheduleName = "linear",
          every: int | None = None, measure: str = "loss") -> list[float]:
    """Return held-out losses in nats (measure="accuracy": accuracies as fractions) after every
    `every` steps, by default after the last step only; infinity once a run has diverged.

    The rate warms up over the fraction `warmup` of the `count` steps, then decays to zero
    ("linear") or is constant ("constant"). Runs are cached."""
    batch_size = batch_size or task_named(task).scales["small"]["data"]["batch_size"]
    run = (json.dumps(optimizer, sort_keys=True), seed, task, count, batch_size, warmup, schedule,
           every or count)
    return [point[measure] for point in _points(*run)]


@functools.cache
def _points(optimizer: str, seed: int, task: str, count: int, batch_size: int, warmup: float,
            schedule: ScheduleName, every: int) -> list[dict[str, float]]:
    run = built(json.loads(optimizer), seed, task, "small", data={"batch_size": batch_size})
    rates = Schedule(run.optimizer, 1, count, schedule, warmup_epochs=warmup)
    held_out = tuple(tensor[:HELD_OUT[task]] for tensor in run.data.eval)
    points: list[dict[str, float]] = []
    rates.set_lr(0)
    for done in steps(run, count):
        rates.set_lr(done)
        if done % every == 0:
            with torch.no_grad():
                loss, means = run.objective.measure(run.objective.loss_fn, *held_out)
            run.model.train()
            if not math.isfinite(loss):
                break
            points.append({"loss": float(loss), **{k: float(v) for k, v in means.items()}})
    diverged = {"loss": math.inf, "accuracy": -math.inf}
    return [*points, *[diverged] * (count // every - len(points))]


# --- grids


def sweep(losses_at: Callable[[float], list[float]], start: float) -> Grid:
    """Return the grid of losses_at(lr), one value per seed. It starts with three rates around
    `start` and grows until the best mean has two neighbors on each side, or to LONGEST rates."""
    losses = {start * FACTOR**n: losses_at(start * FACTOR**n) for n in (-1, 0, 1)}
    while True:
        best = min(losses, key=lambda lr: sum(losses[lr]))
        missing = [lr for n in (-1, 1, -2, 2) if (lr := best * FACTOR**n) not in losses]
        if not missing or len(losses) == LONGEST:
            return {lr: [value if math.isfinite(value) else None for value in values]
                    for lr, values in sorted(losses.items())}
        losses[missing[0]] = losses_at(missing[0])


def curve_sweep(rule: Callable[[float], dict], start: float, seeds: Sequence[int],
                **options: Any) -> Grid:
    """Return the grid of final losses of rule(lr), an [optimizer] table, around `start`."""
    return sweep(lambda lr: [curve(rule(lr), seed, **options)[-1] for seed in seeds], start)


def grid_rows(grid: Grid, seeds: Sequence[int], **shared: object) -> Rows:
    """Return a grid as rows with axis "loss"."""
    return rows_of(grid, ("lr",), seeds, axis="loss", **shared)


def best_rate(rates: list[float], losses: list[float]) -> float:
    """Return the minimum of the parabola, over log lr, through the lowest loss and its neighbors;
    the rate of the lowest loss at an end of the grid or beside a diverged run."""
    at = min(range(len(rates)), key=lambda i: losses[i])
    if at in (0, len(rates) - 1) or not all(map(math.isfinite, losses[at - 1:at + 2])):
        return rates[at]
    left, middle, right = losses[at - 1:at + 2]
    bend = left - 2 * middle + right
    shift = 0.5 * (left - right) / bend if bend > 0 else 0.0
    return rates[at] * (rates[at + 1] / rates[at]) ** shift


def best_rates(grid: Grid) -> list[float]:
    """Return the best learning rate per seed, see `best_rate`."""
    values = [[math.inf if v is None else v for v in row] for row in grid.values()]
    return [best_rate(list(grid), list(losses)) for losses in zip(*values, strict=True)]


def mean_best_rate(grid: Grid) -> Estimate:
    """Return the geometric mean over seeds of the best learning rate, with its interval."""
    return geometric_mean(best_rates(grid))


def finite(grid: Grid) -> dict[float, list[float]]:
    """Return the part of the grid at whose rates no seed diverged."""
    return {lr: [value for value in values if value is not None]
            for lr, values in grid.items() if None not in values}


def best_of_grid(grid: Grid) -> float:
    """Return the rate of the grid with the lowest mean loss."""
    losses = finite(grid)
    return min(losses, key=lambda lr: sum(losses[lr]))


def best_losses(grid: Grid) -> list[float]:
    """Return the loss per seed at the rate with the lowest mean loss."""
    return finite(grid)[best_of_grid(grid)]


def lowest(grid: Grid) -> float:
    """Return the lowest mean loss over the rates."""
    return average(best_losses(grid))


def exponent(sizes: Sequence[float], rates: Sequence[float]) -> float:
    """Return the least-squares slope a of log lr over log size: lr ~ size^a."""
    x, y = ([math.log(value) for value in values] for values in (sizes, rates))
    middle, height = average(x), average(y)
    return (sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True))
            / sum((a - middle) ** 2 for a in x))


def grids_figure(tree: dict[str, dict[object, Grid]], label: str, ylabel: str, **axes: object
                 ) -> dict:
    """Return keywords of `canvas.curves` for mean loss over learning rate.

    tree: panel -> condition -> grid; label: legend text, in which {} is the condition."""
    def points(grid: Grid) -> tuple[list, list]:
        means = {lr: average(values) for lr, values in finite(grid).items()}
        return list(means), list(means.values())

    return {"panels": {name: {label.format(condition): points(grid)
                              for condition, grid in grids.items()}
                       for name, grids in tree.items()},
            "xlabel": "learning rate", "ylabel": ylabel, "xscale": "log", "sharey": True, **axes}


# --- two optimizers against each other


def race(rule: Callable[[float], dict], start: float, seeds: Sequence[int], every: int = EVERY
         ) -> Iterator[Row]:
    """Yield an optimizer's grid with a constant schedule (axis "loss"), and the losses of all seeds
    at its best rate after every `every` steps (axis "curve")."""
    grid = curve_sweep(rule, start, seeds, schedule="constant", every=every)
    yield from grid_rows(grid, seeds)
    for seed in seeds:
        losses = curve(rule(best_of_grid(grid)), seed, schedule="constant", every=every)
        for number, loss in enumerate(losses, 1):
            yield Row("curve", seed, round(loss, 6), settings={"step": every * number})


def grids_of(rows: Rows) -> dict[str, Grid]:
    """Map each optimizer to its grid."""
    return rows.where(axis="loss").tree("optimizer", "lr")


def curves_of(rows: Rows) -> dict[str, list[list[float]]]:
    """Map each optimizer to the losses along each seed's run, infinity where it diverged."""
    trees = rows.where(axis="curve").tree("optimizer", "seed")
    return {name: [[math.inf if loss is None else loss for loss in losses]
                   for losses in by_seed.values()] for name, by_seed in trees.items()}


def arrival(losses: Sequence[float], level: float) -> float:
    """Return the steps until a curve first reaches `level`, interpolated linearly; infinity if it
    never does."""
    for at, loss in enumerate(losses):
        if loss <= level:
            before = losses[at - 1] if at else None
            share = 1.0 if before is None or before == loss else (before - level) / (before - loss)
            return EVERY * (at + share)
    return math.inf


def slowdown(base: list[list[float]], other: list[list[float]]) -> Evidence:
    """Return the ratio of steps, base over other, to the higher of their two lowest losses, paired
    by seed."""
    levels = [max(min(one), min(two)) for one, two in zip(base, other, strict=True)]
    return sample([arrival(one, level) / arrival(two, level)
                   for one, two, level in zip(base, other, levels, strict=True)], log=True)


def percent_more(ratio: Evidence) -> Estimate:
    """Return by how many percent a ratio exceeds one."""
    return ratio.mapped(lambda value: 100 * (value - 1)).estimate


def race_table(rows: Rows) -> list[tuple]:
    """Return a table of best rates, losses and speed-ups over the first optimizer."""
    grids, curves = grids_of(rows), curves_of(rows)
    base, *_ = grids
    return [("rule", "best lr", "lowest loss", f"additional steps of {base}, %"),
            *((name, best_of_grid(grid), [min(losses) for losses in curves[name]],
               None if name == base else percent_more(slowdown(curves[base], curves[name])))
              for name, grid in grids.items())]


def average(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)


def percent(shares: Sequence[float]) -> Estimate:
    """Return the mean of fractions, in percent."""
    return mean([100 * share for share in shares])
