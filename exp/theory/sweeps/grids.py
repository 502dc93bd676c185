"""Learning rates swept: the tasks made small enough for hundreds of runs, and what to read off
the losses over a grid of rates."""

import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from exp.harness.schedule import Schedule
from exp.report.statistics import Estimate, mean
from exp.report.tables import interval, markdown, number
from exp.theory.training import SMALL, built, steps

FACTOR, LONGEST = 2.0, 16  # of the grid, and its most points
STEPS, WARMUP = 150, 0.1
BATCH = SMALL["wikitext2"]["data"]["batch_size"]
HELD_OUT = {"wikitext2": 128, "cifar": 2000, "grokking": 1000}  # sequences, images, pairs
MODEL_TEXT = ("Wikitext-2 with a vocabulary of 1024, a Qwen3 of one layer, width 64, sequences of "
              f"64 tokens, {BATCH} to a batch where no other size is named; held-out loss (nats a "
              f"token) of {HELD_OUT['wikitext2']} sequences.")


# --- rules, by learning rate


def sgd(lr: float) -> dict:
    """SGD with momentum 0.9."""
    return {"name": "sgd", "lr": lr, "momentum": 0.9}


def adamw(lr: float, **keys: object) -> dict:
    """AdamW as the mini tasks have it."""
    return {"name": "adamw", "lr": lr, "betas": [0.9, 0.95], "weight_decay": 0.1, **keys}


def muon(lr: float, **keys: object) -> dict:
    """Muon, with AdamW at 0.15 of its rate for the rest: one rate for both."""
    return {"name": "muon", "lr": lr, "weight_decay": 0.1, "adamw": rest(0.15 * lr), **keys}


def rest(lr: float) -> dict:
    """AdamW for what is no hidden matrix."""
    return {"lr": lr, "betas": [0.9, 0.95], "weight_decay": 0.1}


# --- runs


def curve(optimizer: dict, seed: int, task: str = "wikitext2", *, count: int = STEPS,
          batch_size: int | None = None, warmup: float = WARMUP, schedule: str = "linear",
          every: int | None = None, measure: str = "loss") -> list[float]:
    """Held-out losses (nats; measure="accuracy": shares) after each `every` steps, by default after
    the last alone; infinite from where a run diverged. The rate rises over the share `warmup` of
    the `count` steps, and falls to zero ("linear") or stays ("constant"). Runs are remembered."""
    run = (json.dumps(optimizer, sort_keys=True), seed, task, count,
           batch_size or SMALL[task]["data"]["batch_size"], warmup, schedule, every or count)
    return [point[measure] for point in _points(*run)]


@functools.cache
def _points(optimizer: str, seed: int, task: str, count: int, batch_size: int, warmup: float,
            schedule: str, every: int) -> list[dict[str, float]]:
    run = built(json.loads(optimizer), seed, task, model=SMALL[task]["model"],
                data={**SMALL[task]["data"], "batch_size": batch_size})
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
    lost = {"loss": math.inf, "accuracy": -math.inf}
    return [*points, *[lost] * (count // every - len(points))]


# --- grids


def grid(losses_at: Callable[[float], list[float]], start: float) -> dict[float, list[float]]:
    """lr -> losses_at(lr), one value a seed: from three points around `start` on, until the best
    mean has two neighbours on either side."""
    found = {start * FACTOR**n: losses_at(start * FACTOR**n) for n in (-1, 0, 1)}
    while True:
        best = min(found, key=lambda lr: sum(found[lr]))
        missing = [lr for n in (-1, 1, -2, 2) if (lr := best * FACTOR**n) not in found]
        if not missing or len(found) == LONGEST:
            return dict(sorted(found.items()))
        found[missing[0]] = losses_at(missing[0])


def written(by_rate: dict[float, list[float]]) -> dict[str, list[float | None]]:
    """A grid as JSON has it: rates as text, null where a run diverged."""
    return {f"{lr:.6g}": [value if math.isfinite(value) else None for value in values]
            for lr, values in by_rate.items()}


def sweep(rule: Callable[[float], dict], start: float, seeds: Sequence[int], **options
          ) -> dict[str, list[float | None]]:
    """The grid of rule(lr), an [optimizer] table, around `start`: final losses, one a seed."""
    return written(grid(lambda lr: [curve(rule(lr), seed, **options)[-1] for seed in seeds],
                        start))


def best_rate(rates: list[float], losses: list[float]) -> float:
    """Where the parabola through the lowest loss and its neighbours, over log lr, is lowest."""
    at = min(range(len(rates)), key=lambda i: losses[i])
    if at in (0, len(rates) - 1) or not all(map(math.isfinite, losses[at - 1:at + 2])):
        return rates[at]
    left, middle, right = losses[at - 1:at + 2]
    bend = left - 2 * middle + right
    shift = 0.5 * (left - right) / bend if bend > 0 else 0.0
    return rates[at] * (rates[at + 1] / rates[at]) ** shift


def best_rates(by_rate: dict) -> list[float]:
    """The best learning rate of each seed."""
    rates = [float(lr) for lr in by_rate]
    values = [[math.inf if v is None else v for v in row] for row in by_rate.values()]
    return [best_rate(rates, list(losses)) for losses in zip(*values, strict=True)]


def best_losses(by_rate: dict) -> list[float]:
    """One loss a seed, all at the rate with the lowest mean."""
    rows = [values for values in by_rate.values() if None not in values]
    return min(rows, key=sum)


def lowest(by_rate: dict) -> float:
    """The lowest mean loss of any rate."""
    values = best_losses(by_rate)
    return sum(values) / len(values)


def best_of_grid(by_rate: dict) -> float:
    """The rate of the grid with the lowest mean loss."""
    return float(min((lr for lr, values in by_rate.items() if None not in values),
                     key=lambda lr: sum(by_rate[lr])))


def exponent(sizes: Sequence[float], rates: Sequence[float]) -> float:
    """The least-squares slope a of log lr over log size: lr ~ size^a."""
    x, y = ([math.log(value) for value in values] for values in (sizes, rates))
    middle, height = sum(x) / len(x), sum(y) / len(y)
    return (sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True))
            / sum((a - middle) ** 2 for a in x))


# --- two rules against each other


EVERY = 5  # steps between the points of a curve


def race(rules: dict[str, tuple[Callable[[float], dict], float]], seeds: Sequence[int]) -> dict:
    """Rule -> its grid at a constant rate, and the curves of all seeds at its best rate.

    rules: name -> (lr -> [optimizer] table, where the grid begins).
    """
    found = {}
    for name, (rule, start) in rules.items():
        by_rate = sweep(rule, start, seeds, schedule="constant", every=EVERY)
        best = best_of_grid(by_rate)
        found[name] = {"rates": by_rate, "curves": [
            curve(rule(best), seed, schedule="constant", every=EVERY) for seed in seeds]}
    return found


def arrival(losses: Sequence[float], level: float) -> float:
    """Steps until a curve first is at `level`, linearly between its points; infinite if never."""
    for at, loss in enumerate(losses):
        if loss <= level:
            before = losses[at - 1] if at else None
            share = 1.0 if before is None or before == loss else (before - level) / (before - loss)
            return EVERY * (at + share)
    return math.inf


def speedups(base: list[list[float]], other: list[list[float]]) -> list[float]:
    """How much sooner the other is at the higher of the two lowest losses, seed by seed: 0.1 where
    the base needs 10 % more steps."""
    found = []
    for one, two in zip(base, other, strict=True):
        level = max(min(one), min(two))
        found.append(arrival(one, level) / arrival(two, level) - 1)
    return found


def render_race(found: dict) -> str:
    """Best rates, losses and speed-ups over the first rule."""
    base, *_ = found
    lines = [("rule", "best lr", "lowest loss", f"steps that {base} needs more, %")]
    for name, entry in found.items():
        gain = speedups(found[base]["curves"], entry["curves"])
        lines.append((name, number(best_of_grid(entry["rates"])),
                      interval(mean([min(losses) for losses in entry["curves"]])),
                      "–" if name == base else interval(percent(gain))))
    return (f"{MODEL_TEXT} {STEPS} steps, warm-up over {WARMUP:.0%}, then a constant rate, the "
            f"best of a grid in factors of {FACTOR:g} for each. Compared where both have got to: "
            "at the higher of the two lowest losses of a seed.\n\n" + markdown(lines))


def percent(shares: Sequence[float]) -> Estimate:
    """The mean of shares, in percent."""
    return mean([100 * share for share in shares])


# --- pictures


def plot_grids(path: Path, found: dict[str, dict[str, dict]], label: str, ylabel: str,
               ylim: tuple[float, float] | None = None) -> None:
    """Mean loss over learning rate, a panel a rule, a line a condition: a PNG at `path`.

    found: rule -> condition -> grid; label: the legend's, {} stands for the condition.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.7 * columns, 3 * rows), sharey=True,
                                squeeze=False, layout="constrained")
    for panel, (rule, by_condition) in zip(axes.flat, found.items(), strict=False):
        for condition, by_rate in by_condition.items():
            points = {float(lr): sum(values) / len(values) for lr, values in by_rate.items()
                      if None not in values}
            panel.plot(list(points), list(points.values()), marker="o", markersize=3.5,
                       label=label.format(condition))
        panel.set(title=rule, xscale="log", xlabel="learning rate", ylim=ylim)
        panel.xaxis.set_minor_formatter("")
        panel.grid(color="#e3e5e8", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in axes.flat[len(found):]:
        panel.set_axis_off()
    for panel in axes[:, 0]:
        panel.set_ylabel(ylabel)
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
