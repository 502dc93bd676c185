"""At rates where K-FAC blows up, does a trust region survive?"""

import math
from collections.abc import Iterable

from exp.papers.ars2_neo.statements import radius_sweep
from exp.report.rows import Row, Rows
from exp.report.tables import number
from exp.theory.statement import Verdict, verdict
from exp.theory.sweeps import average

GUESSING = {"cifar": math.log(10), "wikitext2": math.log(2048)}  # nats
LABELS = ("K-FAC", "K-FAC, damping 1e-5, no KL clip", "Muon", "RMSuon", "TR-Muon curvature, line")
FRAGILE, PLAIN, OURS = LABELS[1], "RMSuon", LABELS[-1]
GRID = {"task": GUESSING, "optimizer": LABELS, "factor": (10, 100, 1000)}


def measure(seeds: list[int], task: str, optimizer: str, factor: float) -> Iterable[Row]:
    """Losses at a multiple of the optimizer's rate."""
    return radius_sweep.final_losses(seeds, task, optimizer, factor)


def blown_up(task: str, losses: list[float | None]) -> int:
    """How many of these runs diverged or ended above the loss of guessing."""
    return sum(loss is None or loss > GUESSING[task] for loss in losses)


def judge(rows: Rows) -> Verdict:
    """By how many runs of each optimizer blew up, and where."""
    count = {name: sum(blown_up(task, losses) for task, losses in by_task.items())
             for name, by_task in rows.tree("optimizer", "task").items()}
    where = [(task, losses) for task, by_factor in rows.tree("task", "factor", "optimizer").items()
             for losses in by_factor.values() if blown_up(task, losses[FRAGILE])]
    survives = bool(where) and not any(blown_up(task, losses[OURS]) for task, losses in where)
    return verdict(
        survives, count[OURS] < min(count[FRAGILE], count[PLAIN]),
        f"blown up, of {len(rows.where(optimizer=OURS))} runs: "
        + ", ".join(f"{name} {number}" for name, number in count.items()))


def tables(rows: Rows) -> dict:
    """Mean losses of the runs that did not diverge, and how many blew up."""
    def shown(task, losses):
        finite = [loss for loss in losses if loss is not None]
        value = number(average(finite)) if finite else "–"
        return f"{value} ({blown_up(task, losses)} of {len(losses)})"

    return {task: [(f"{task} (guessing: {number(GUESSING[task])})",
                    *(f"x {factor}" for factor in rows.levels("factor"))),
                   *((f"{name}, lr0 {radius_sweep.RULES[name]['lr']:g}",
                      *(shown(task, losses) for losses in by_factor.values()))
                     for name, by_factor in by_name.items())]
            for task, by_name in rows.tree("task", "optimizer", "factor").items()}
