"""Does TR-Muon stay stable at learning rates where K-FAC diverges?"""

import math
from collections.abc import Iterable

from exp.papers.ars2_neo.statements import radius_sweep
from exp.report.evidence import proportion
from exp.report.judgement import INCONCLUSIVE, Judgement, judge_all, judge_below
from exp.report.rows import Row, Rows
from exp.report.tables import number
from exp.theory.statement import Verdict
from exp.theory.sweeps import average

GUESSING = {"cifar": math.log(10), "wikitext2": math.log(2048)}  # nats
LABELS = ("K-FAC", "K-FAC, damping 1e-5, no KL clip", "Muon", "RMSuon", "TR-Muon curvature, line")
FRAGILE, OURS = LABELS[1], LABELS[-1]
SURVIVES = 0.1  # the share of runs that may blow up
GRID = {"task": GUESSING, "optimizer": LABELS, "factor": (10, 100, 1000)}


def measure(seeds: list[int], task: str, optimizer: str, factor: float) -> Iterable[Row]:
    """Return losses at a multiple of the optimizer's rate."""
    return radius_sweep.final_losses(seeds, task, optimizer, factor)


def blown_up(task: str, losses: list[float | None]) -> int:
    """Return how many runs diverged or ended above the loss of uniform guessing."""
    return sum(loss is None or loss > GUESSING[task] for loss in losses)


def judge(rows: Rows) -> Verdict:
    """Judge by the share of TR-Muon's runs that blew up at rates where K-FAC's did."""
    where = {f"{task} x {factor}": (blown_up(task, losses[OURS]), len(losses[OURS]))
             for task, by_factor in rows.tree("task", "factor", "optimizer").items()
             for factor, losses in by_factor.items() if blown_up(task, losses[FRAGILE])}
    if not where:
        return Verdict(Judgement(INCONCLUSIVE, why="K-FAC blew up nowhere"), "nothing blew up")
    return Verdict(
        judge_all([judge_below(proportion(*runs), SURVIVES) for runs in where.values()]),
        "TR-Muon's runs that blew up, where K-FAC did: "
        + ", ".join(f"{lost} of {n} ({place})" for place, (lost, n) in where.items()))


def tables(rows: Rows) -> dict:
    """Return a table of mean losses of the runs that did not diverge, and of blown-up runs."""
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
