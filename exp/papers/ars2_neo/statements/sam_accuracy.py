"""Does SAM improve the accuracy of an image classifier?"""

from collections.abc import Iterable

from exp.report.evidence import sample
from exp.report.judgement import judge_above
from exp.report.rows import Row, Rows, rows_of
from exp.report.tables import interval
from exp.theory import sam
from exp.theory.statement import Verdict
from exp.theory.sweeps import percent

POINTS = 0.5
GRID = {"task": ("cifar",)}


def measure(seeds: list[int], task: str) -> Iterable[Row]:
    """Yield accuracies (fractions) of AdamW at its best rate, and of SAM-AdamW at every radius."""
    lr, plain = sam.baseline(task, seeds)
    yield from rows_of(plain, ("budget",), seeds, axis="accuracy", optimizer="AdamW", lr=lr)
    yield from rows_of(sam.with_radius(task, lr, "constant", seeds), ("rho",), seeds,
                       axis="accuracy", optimizer="SAM-AdamW", lr=lr)


def gains(rows: Rows) -> dict[str, list[float]]:
    """Return SAM's accuracy minus AdamW's in points, at equal steps and at equal gradient
    evaluations."""
    by_radius = rows.tree("rho")
    ours = by_radius[sam.best_key("cifar", by_radius)]
    return {budget: [100 * (a - b) for a, b in zip(ours, values, strict=True)]
            for budget, values in rows.tree("budget").items()}


def judge(rows: Rows) -> Verdict:
    """Judge by the gain at equal gradient evaluations; the text also gives that at equal steps."""
    by_budget = {budget: sample(values) for budget, values in gains(rows).items()}
    return Verdict(
        judge_above(by_budget["as many gradients"], POINTS),
        "SAM's accuracy minus AdamW's: " + ", ".join(
            f"{interval(gain.estimate)} points at {budget}" for budget, gain in by_budget.items()))


def tables(rows: Rows) -> dict:
    """Return a table of accuracies and their difference."""
    return {"lr": f"{rows[0]['lr']:g}", "accuracy": [
        ("", "accuracy, %", "SAM's best less this, points"),
        *((f"AdamW, {budget}", percent(values), gains(rows)[budget])
          for budget, values in rows.tree("budget").items()),
        *((f"SAM-AdamW, rho {rho:g}", percent(values), None)
          for rho, values in rows.tree("rho").items())]}
