"""How much does 8-bit state raise AdamW's loss?"""

from collections.abc import Iterable

from exp.report.evidence import sample
from exp.report.judgement import judge_below
from exp.report.rows import Row, Rows, rows_of
from exp.report.tables import interval, number
from exp.theory import sweeps
from exp.theory.statement import Verdict

BOUND = 0.1  # percent
PAIRS = 4  # pairs of runs per seed, since differences are small
EIGHT_BIT = {"name": "adamw_8bit", "min_8bit_size": 0}  # quantize all tensors


def measure(seeds: list[int]) -> Iterable[Row]:
    """Yield AdamW's grid (axis "loss"), then AdamW and 8-bit AdamW at its best rate (axis
    "paired")."""
    grid = sweeps.curve_sweep(sweeps.adamw, 2**-7, seeds)
    yield from sweeps.grid_rows(grid, seeds, optimizer="AdamW")
    table = sweeps.adamw(sweeps.best_of_grid(grid))
    pairs = [PAIRS * (seed - 1) + n for seed in seeds for n in range(1, PAIRS + 1)]
    losses = {"AdamW": [sweeps.curve(table, seed)[-1] for seed in pairs],
              "8-bit AdamW": [sweeps.curve({**table, **EIGHT_BIT}, seed)[-1] for seed in pairs]}
    yield from rows_of(losses, ("optimizer",), pairs, axis="paired")


def differences(rows: Rows) -> list[float]:
    """Return (8-bit - AdamW) / AdamW in percent for each pair."""
    theirs, ours = rows.where(axis="paired").tree("optimizer").values()
    return [100 * (a / b - 1) for a, b in zip(ours, theirs, strict=True)]


def judge(rows: Rows) -> Verdict:
    """Judge by the differences of the pairs."""
    loss = sample(differences(rows))
    return Verdict(judge_below(loss, BOUND), f"loss changes by {interval(loss.estimate)} %")


def tables(rows: Rows) -> dict:
    """Return a table of losses and their difference."""
    losses = rows.where(axis="paired").tree("optimizer")
    return {"lr": number(sweeps.best_of_grid(sweeps.grids_of(rows)["AdamW"])),
            "pairs": f"{len(losses['AdamW'])}",
            "losses": [("rule", "loss", "difference, %"), ("AdamW", losses["AdamW"], None),
                       ("8-bit AdamW", losses["8-bit AdamW"], differences(rows))]}
