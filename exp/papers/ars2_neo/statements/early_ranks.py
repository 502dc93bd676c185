"""Do the ranks of optimizers early in a run predict their ranks at its end?"""

import math
from collections.abc import Iterable

from scipy.stats import spearmanr

from exp.harness.recipes import ROOT
from exp.harness.task import task_named
from exp.report.evidence import Evidence, sample
from exp.report.rows import Row, Rows
from exp.report.tables import interval
from exp.reproduce.records import read_kept
from exp.theory.statement import Verdict, agreement_of

# Task -> table, scale, epoch of the early value, sign (1: more is better) of early and final value.
TABLES = {"cifar": ("paper-4.2", "mini", 1, (1, 1)),
          "wikitext2": ("paper-4.3", "mini", 1, (-1, -1)),
          "grokking": ("readme-3.3", "full", 40, (1, -1))}
NAMES = ", ".join(f"{table} ({scale})" for table, scale, *_ in TABLES.values())
AGREES = 0.5
AXES = ("early", "end")
GRID = {"task": TABLES}
PAPER = ROOT / "outputs" / "paper"


def measure(seeds: list[int], task: str) -> Iterable[Row]:
    """Yield every optimizer's early and final value of the metric, None for a milestone never
    reached."""
    table, scale, epoch, _ = TABLES[task]
    for run in read_kept(PAPER / f"{table}.json")["runs"]:
        if (run["scale"], run["protocol"]) == (scale, "published") and run["seed"] in seeds:
            curve = run["curve"][task_named(task).primary.name]
            end = run["milestones"]["converged"] if task == "grokking" else curve[-1]
            for axis, value in zip(AXES, (curve[min(epoch, len(curve)) - 1], end), strict=True):
                yield Row(axis, run["seed"], value, optimizer=run["row"])


def goodness(rows: Rows, task: str) -> list[list[float]]:
    """Return each optimizer's early and final values, more is better; a milestone never reached is
    the worst."""
    return [[-math.inf if value is None else sign * value for value in rows.values(axis=axis)]
            for axis, sign in zip(AXES, TABLES[task][-1], strict=True)]


def correlation(early: list[float], end: list[float]) -> float:
    """Return Spearman's correlation; 0 if one of the two is constant."""
    varies = min(len(set(early)), len(set(end))) > 1
    return float(spearmanr(early, end).statistic) if varies else 0.0


def pairs(rows: Rows) -> dict[str, list]:
    """Map each task to (early, final) values per seed."""
    by_seed = {task: [rows.where(task=task, seed=seed) for seed in rows.levels("seed")]
               for task in rows.levels("task")}
    return {task: [goodness(one, task) for one in of if one] for task, of in by_seed.items()}


def correlations(rows: Rows) -> dict[str, Evidence]:
    """Map each task to the rank correlation per seed."""
    return {task: sample([correlation(*pair) for pair in of]) for task, of in pairs(rows).items()}


def judge(rows: Rows) -> Verdict:
    """Judge by the rank correlations."""
    return agreement_of(correlations(rows), AGREES)


def tables(rows: Rows) -> dict:
    """Return tables of correlations, and of the values."""
    lines = [("task", "rank correlation", "best early, of the seeds also best at the end")]
    for task, rank in correlations(rows).items():
        of = pairs(rows)[task]
        same = sum(early.index(max(early)) == end.index(max(end)) for early, end in of)
        lines.append((task, interval(rank.estimate), f"{same} of {len(of)}"))
    return {"ranks": lines, "readings": rows.pivot(("task", "optimizer"), "axis")}
