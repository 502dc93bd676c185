"""Is Adam faster when its eps follows the gradient?"""

from collections.abc import Iterable

from exp.report.rows import Row, Rows
from exp.report.tables import interval
from exp.theory import sweeps
from exp.theory.statement import Verdict, verdict

START = 2**-7
GRID = {"optimizer": ("AdamW", "AdaEps")}


def measure(seeds: list[int], optimizer: str) -> Iterable[Row]:
    """The race of exp.theory.sweeps."""
    name = {"AdamW": "adamw", "AdaEps": "ada_eps"}[optimizer]
    return sweeps.race(lambda lr: {**sweeps.adamw(lr), "name": name}, START, seeds)


def judge(rows: Rows) -> Verdict:
    """By how many steps more AdamW needs."""
    curves = sweeps.curves_of(rows)
    gain = sweeps.percent(sweeps.speedups(curves["AdamW"], curves["AdaEps"]))
    return verdict(gain.value >= 10, gain.value >= 2, f"AdamW needs {interval(gain)} % more steps")


def tables(rows: Rows) -> dict:
    """Rates, losses and the speed-up."""
    return {"race": sweeps.race_table(rows)}
