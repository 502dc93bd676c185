"""How much do LAMB's and AdamW's losses rise with a large batch?"""

from collections.abc import Iterable

from exp.report.evidence import Evidence, sample
from exp.report.judgement import judge_below
from exp.report.rows import Row, Rows
from exp.report.tables import interval
from exp.theory import sweeps
from exp.theory.statement import Verdict

SMALL, LARGE, EXAMPLES = 4, 64, 1280
FACTOR, LONG = LARGE // SMALL, EXAMPLES // LARGE
LEAST = 0.02  # nats
# Optimizer -> lr -> [optimizer] table, and the first learning rate for the small batch.
RULES = {"AdamW": (sweeps.adamw, 2**-8),
         "LAMB": (lambda lr: {"name": "lamb", "lr": lr, "betas": [0.9, 0.95],
                              "weight_decay": 0.1}, 2**-5)}
GRID = {"optimizer": RULES}
KEYS = ("optimizer", "batch", "lr")


def measure(seeds: list[int], optimizer: str) -> Iterable[Row]:
    """Yield a grid at both batch sizes."""
    rule, start = RULES[optimizer]
    for batch in (SMALL, LARGE):
        grid = sweeps.curve_sweep(rule, start, seeds, batch_size=batch, count=EXAMPLES // batch)
        yield from sweeps.grid_rows(grid, seeds, batch=batch)
        start = sweeps.best_of_grid(grid)


def costs(rows: Rows) -> dict[str, list[float]]:
    """Map each optimizer to the loss increase (nats) with the large batch, paired by seed."""
    return {name: [b - a for a, b in zip(*map(sweeps.best_losses, by_batch.values()), strict=True)]
            for name, by_batch in rows.tree(*KEYS).items()}


def difference(rows: Rows) -> Evidence:
    """Return LAMB's loss increase minus AdamW's."""
    increases = costs(rows)
    return sample([a - b for a, b in zip(increases["LAMB"], increases["AdamW"], strict=True)])


def judge(rows: Rows) -> Verdict:
    """Judge by the difference of the loss increases."""
    return Verdict(judge_below(difference(rows), 0.0, LEAST),
                   "loss increase with the large batch (nats): " + ", ".join(
                       f"{interval(sample(cost).estimate)} ({name})"
                       for name, cost in costs(rows).items())
                   + f"; difference {interval(difference(rows).estimate)}")


def tables(rows: Rows) -> dict:
    """Return a table of best rates and losses."""
    lines = [("rule", "batch", "best lr", "loss")]
    return {"losses": [*lines, *((name, str(batch), sweeps.best_of_grid(grid),
                                  sweeps.best_losses(grid))
                                 for name, by_batch in rows.tree(*KEYS).items()
                                 for batch, grid in by_batch.items())]}
