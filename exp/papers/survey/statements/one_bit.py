"""How much does the loss rise if each weight's update is compressed to one bit?"""

from collections.abc import Iterable

from exp.report.evidence import Evidence, sample
from exp.report.judgement import judge_below
from exp.report.rows import Row, Rows
from exp.report.tables import interval
from exp.theory import sweeps
from exp.theory.statement import Verdict

BOUND = 1.0  # percent


def compressed(lr: float, compressor: str) -> dict:
    """SGD with momentum 0.9 and compressed updates."""
    return {"name": "error_feedback", "lr": lr, "momentum": 0.9, "compressor": compressor}


# Optimizer -> lr -> [optimizer] table, and the first learning rate of its grid.
RULES = {"SGD": (lambda lr: compressed(lr, "none"), 2**-3),
         "EF-signSGD": (lambda lr: compressed(lr, "sign"), 2**-3),
         "EF top 1 %": (lambda lr: compressed(lr, "topk"), 2**-3),
         "Signum, no feedback": (lambda lr: {"name": "signum", "lr": lr}, 2**-10)}
GRID = {"optimizer": RULES}


def measure(seeds: list[int], optimizer: str) -> Iterable[Row]:
    """Return the grid of final losses of one rule."""
    return sweeps.grid_rows(sweeps.curve_sweep(*RULES[optimizer], seeds), seeds)


def costs(rows: Rows) -> dict[str, Evidence]:
    """Map each rule to its loss above SGD's in percent, each at its best rate, paired by seed."""
    best = {name: sweeps.best_losses(grid) for name, grid in sweeps.grids_of(rows).items()}
    base = best.pop("SGD")
    return {name: sample([100 * (a / b - 1) for a, b in zip(losses, base, strict=True)])
            for name, losses in best.items()}


def judge(rows: Rows) -> Verdict:
    """Judge by the loss increase with one bit; the text also gives the others'."""
    increases = costs(rows)
    return Verdict(judge_below(increases["EF-signSGD"], BOUND), "loss above SGD's: " + ", ".join(
        f"{interval(cost.estimate)} % ({name})" for name, cost in increases.items()))


def tables(rows: Rows) -> dict:
    """Return a table of best rates and losses."""
    lines = [("rule", "best lr", "loss")]
    return {"losses": [*lines, *((name, sweeps.best_of_grid(grid), sweeps.best_losses(grid))
                                 for name, grid in sweeps.grids_of(rows).items())]}
