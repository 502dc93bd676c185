"""Is Adam faster with an eps relative to the gradient?"""

from collections.abc import Iterable

from exp.report.judgement import judge_above
from exp.report.rows import Row, Rows
from exp.report.tables import interval
from exp.theory import sweeps
from exp.theory.statement import Verdict

START = 2**-7
SLOWER = 1.10
GRID = {"optimizer": ("AdamW", "AdaEps")}


def measure(seeds: list[int], optimizer: str) -> Iterable[Row]:
    """Return the rows of `race` in exp.theory.sweeps."""
    name = {"AdamW": "adamw", "AdaEps": "ada_eps"}[optimizer]
    return sweeps.race(lambda lr: {**sweeps.adamw(lr), "name": name}, START, seeds)


def judge(rows: Rows) -> Verdict:
    """Judge by the percentage of additional steps that AdamW needs."""
    curves = sweeps.curves_of(rows)
    ratio = sweeps.slowdown(curves["AdamW"], curves["AdaEps"])
    return Verdict(judge_above(ratio, SLOWER),
                   f"AdamW needs {interval(sweeps.percent_more(ratio))} % more steps")


def tables(rows: Rows) -> dict:
    """Return a table of rates, losses and the speed-up."""
    return {"race": sweeps.race_table(rows)}
