"""Is Muon worse than AdamW at small batch sizes?"""

from collections.abc import Iterable

from exp.report.evidence import sample
from exp.report.judgement import WORTH_NAMING, judge_above, judge_all
from exp.report.rows import Row, Rows
from exp.report.tables import interval
from exp.theory import sweeps
from exp.theory.statement import Verdict
from exp.theory.training import built, training_loss

LIMIT = 256
RULES = {"AdamW": (sweeps.adamw, 2**-8), "Muon": (sweeps.muon, 2**-6)}
BATCHES = {"wikitext2": (2, 8, 32, 128), "grokking": (16, 64, 256, 1024)}
PAIR_STEPS = 100
GRID = {"task": BATCHES, "optimizer": RULES}
KEYS = ("task", "batch", "optimizer", "lr")


def measure(seeds: list[int], task: str, optimizer: str) -> Iterable[Row]:
    """Yield a grid per batch size, each started at the best rate of the previous one."""
    table, start = RULES[optimizer]
    for batch in BATCHES[task]:
        if task == "wikitext2":
            grid = sweeps.curve_sweep(table, start, seeds, batch_size=batch)
        else:
            def losses(lr: float, batch: int = batch) -> list[float]:
                return [pair_loss(table(lr), batch, seed) for seed in seeds]

            grid = sweeps.sweep(losses, start)
        yield from sweeps.grid_rows(grid, seeds, batch=batch)
        start = sweeps.best_of_grid(grid)


def pair_loss(optimizer: dict, batch: int, seed: int) -> float:
    """Return the training loss (nats) of modular addition after PAIR_STEPS steps."""
    return training_loss(built(optimizer, seed, data={"batch_size": batch}), PAIR_STEPS)


def differences(grids: dict[str, sweeps.Grid]) -> list[float]:
    """Return Muon's loss minus AdamW's, each at its best rate, paired by seed."""
    losses = [sweeps.best_losses(grids[name]) for name in ("Muon", "AdamW")]
    return [ours - theirs for ours, theirs in zip(*losses, strict=True)]


def judge(rows: Rows) -> Verdict:
    """Judge by the difference at every small batch size of each task."""
    small = {(task, batch): (sample(differences(grids)), sweeps.lowest(grids["AdamW"]))
             for task, by_batch in rows.tree(*KEYS).items()
             for batch, grids in by_batch.items() if batch < LIMIT}
    return Verdict(
        judge_all([judge_above(more, 0.0, WORTH_NAMING * loss) for more, loss in small.values()]),
        "Muon's loss minus AdamW's (nats): " + ", ".join(
            f"{interval(more.estimate)} ({task}, batch {batch})"
            for (task, batch), (more, _) in small.items()))


def tables(rows: Rows) -> dict:
    """Return a table of best rates, losses and their difference at every batch size."""
    lines = [("task", "batch", "AdamW: best lr", "loss", "Muon: best lr", "loss",
              "Muon less AdamW")]
    for task, by_batch in rows.tree(*KEYS).items():
        for batch, grids in by_batch.items():
            cells = [(sweeps.best_of_grid(grids[name]), sweeps.best_losses(grids[name]))
                     for name in RULES]
            lines.append((task, str(batch), *sum(cells, ()), differences(grids)))
    return {"losses": lines}
