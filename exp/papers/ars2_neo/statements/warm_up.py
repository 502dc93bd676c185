"""Does a transformer need warm-up?"""

from collections.abc import Iterable

from exp.report.evidence import sample
from exp.report.judgement import judge_above, judge_all
from exp.report.rows import Row, Rows
from exp.report.tables import interval
from exp.theory import sweeps
from exp.theory.statement import Verdict

WORSE = 0.05


def base(lr: float) -> dict:
    """ARS2-Neo Base with one learning rate for all parameters."""
    return {"name": "ars2_neo", "k": 0, "lr": lr, "betas": [0.9, 0.95], "weight_decay": 0.1,
            "energy_norm": "frobenius", "adamw": sweeps.rest(lr)}


# Optimizer -> lr -> [optimizer] table, and the first learning rate of its grid.
RULES = {"SGD with momentum": (sweeps.sgd, 2**-3), "AdamW": (sweeps.adamw, 2**-7),
         "Lion": (sweeps.lion, 2**-10), "Muon": (sweeps.muon, 2**-4),
         "ARS2-Neo Base": (base, 2**-7)}
CONDITIONS = {"without": 0.0, "with": sweeps.WARMUP}
GRID = {"optimizer": RULES, "warm_up": CONDITIONS}
KEYS = ("optimizer", "warm_up", "lr")


def measure(seeds: list[int], optimizer: str, warm_up: str) -> Iterable[Row]:
    """Return the grid of one optimizer under one condition."""
    grid = sweeps.curve_sweep(*RULES[optimizer], seeds, warmup=CONDITIONS[warm_up])
    return sweeps.grid_rows(grid, seeds)


def costs(by: dict[str, sweeps.Grid]) -> list[float]:
    """Return the loss increase (nats) without warm-up, each at its best rate, paired by seed."""
    losses = [sweeps.best_losses(by[which]) for which in CONDITIONS]
    return [one - two for one, two in zip(*losses, strict=True)]


def judge(rows: Rows) -> Verdict:
    """Judge by the loss increase without warm-up."""
    increases = {name: sample(costs(by)) for name, by in rows.tree(*KEYS).items()}
    return Verdict(
        judge_all([judge_above(cost, WORSE) for cost in increases.values()]),
        "loss without warm-up minus loss with it (nats): " + ", ".join(
            f"{interval(cost.estimate)} ({name})" for name, cost in increases.items()))


def tables(rows: Rows) -> dict:
    """Return a table of best rates and losses with and without warm-up."""
    lines = [("rule", "best lr without", "with", "loss without", "with", "difference")]
    for name, by in rows.tree(*KEYS).items():
        losses = [sweeps.best_losses(by[which]) for which in CONDITIONS]
        lines.append((name, *(sweeps.best_of_grid(by[which]) for which in CONDITIONS), *losses,
                      costs(by)))
    return {"losses": lines}


def figure(rows: Rows) -> dict:
    """Return mean loss over learning rate, with and without warm-up: one panel per optimizer."""
    return sweeps.grids_figure(rows.tree(*KEYS), "{} warm-up", "held-out loss (nats)")
