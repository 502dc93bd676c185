"""Does ARS2-Neo's loss rise if its shear force is stored in fewer bytes?"""

from collections.abc import Iterable

from exp.report.evidence import sample
from exp.report.judgement import judge_all, judge_below
from exp.report.rows import Row, Rows, rows_of
from exp.report.tables import Lines, interval, number
from exp.theory import sweeps
from exp.theory.statement import Verdict
from exp.theory.training import built, steps
from optimizer.parts.state import state_per_weight

BOUND = 0.005
STORAGES = ("full", "bf16", "8bit")
MODES = {"Lazy k=5": {"k": 5}, "AGA": {"k": 10, "adaptive_sync": True}}
START = 2**-9
# Not grokking: modular addition does not generalize in so few steps.
GRID = {"task": ("wikitext2", "cifar"), "mode": MODES}


def table(mode: str, storage: str, lr: float) -> dict:
    """Return ARS2-Neo's [optimizer] table, with AdamW at the same rate for parameters off the
    matrix track."""
    return {"name": "ars2_neo", "lr": lr, "betas": [0.9, 0.95], "weight_decay": 0.1, **MODES[mode],
            "shear_storage": storage, "routing": "role", "adamw": sweeps.rest(lr)}


def measure(seeds: list[int], task: str, mode: str) -> Iterable[Row]:
    """Yield losses of all storages at the best rate of the full tensor, and the size of their
    state."""
    grid = sweeps.curve_sweep(lambda lr: table(mode, "full", lr), START, seeds[:1], task=task)
    rate = sweeps.best_of_grid(grid)
    for storage in STORAGES:
        losses = [sweeps.curve(table(mode, storage, rate), seed, task)[-1] for seed in seeds]
        shared = {"storage": storage, "lr": rate}
        yield from rows_of(losses, (), seeds, axis="loss", **shared)
        yield Row("state", seeds[0], state(task, table(mode, storage, rate)), settings=shared)


def state(task: str, optimizer: dict) -> float:
    """Return bytes of state over bytes of weights after a step that stores a shear force."""
    run = built(optimizer, 1, task, "small")
    list(steps(run, 1))
    return state_per_weight(run.optimizer)


def differences(rows: Rows, storage: str) -> list[list[float]]:
    """Return per seed (loss - loss with the full tensor) / loss with the full tensor, for each task
    and mode."""
    trees = rows.where(axis="loss").tree("task", "mode", "storage")
    return [[ours / full - 1 for ours, full in zip(losses[storage], losses["full"], strict=True)]
            for modes in trees.values() for losses in modes.values()]


def judge(rows: Rows) -> Verdict:
    """Judge by the losses with 8 bits, per mode and task."""
    losses = differences(rows, "8bit")
    places = [f"{task} {mode}" for task in rows.levels("task") for mode in rows.levels("mode")]
    return Verdict(
        judge_all([judge_below(sample(values), BOUND) for values in losses]),
        "increase of the loss with 8 bits, %: " + ", ".join(
            f"{interval(sweeps.percent(values))} ({place})"
            for place, values in zip(places, losses, strict=True)))


def tables(rows: Rows) -> dict:
    """Return a table of loss, difference and state of every storage per task."""
    lines: Lines = [("task, mode", "lr", "shear in", "state / weight", "loss", "difference, %")]
    for task in rows.levels("task"):
        for mode in rows.levels("mode"):
            subset = rows.where(task=task, mode=mode)
            for storage in rows.levels("storage"):
                (size,) = subset.values(axis="state", storage=storage)
                (values,) = differences(subset, storage)
                lines.append((f"{task}, {mode}", number(subset[0]["lr"]), storage, f"{size:.2f}",
                              subset.values(axis="loss", storage=storage),
                              None if storage == "full" else sweeps.percent(values)))
    return {"losses": lines}
