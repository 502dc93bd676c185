"""Is a perturbation radius that follows the learning rate or the loss gap better than a fixed one?
"""

from collections.abc import Iterable

from exp.report.judgement import judge_all, judge_any
from exp.report.rows import Row, Rows, rows_of
from exp.report.statistics import mean
from exp.report.tables import Lines, interval, number
from exp.theory import sam
from exp.theory.statement import Verdict
from exp.theory.sweeps import average

GRID = {"task": sam.STEPS}


def measure(seeds: list[int], task: str) -> Iterable[Row]:
    """Yield AdamW at its best rate, and SAM-AdamW with every radius and radius schedule."""
    lr, plain = sam.baseline(task, seeds)
    shared = {"axis": sam.METRIC[task], "lr": lr}
    yield from rows_of(plain["as many steps"], (), seeds, optimizer="AdamW", **shared)
    for schedule in sam.SCHEDULES:
        yield from rows_of(sam.with_radius(task, lr, schedule, seeds), ("rho",), seeds,
                           optimizer="SAM-AdamW", schedule=schedule, **shared)


def at_best(rows: Rows) -> dict[str, dict[str, tuple[float, list[float]]]]:
    """Map task -> radius schedule -> (best radius, its values per seed)."""
    trees = rows.where(optimizer="SAM-AdamW").tree("task", "schedule", "rho")
    return {task: {schedule: (rho := sam.best_key(task, by_radius), by_radius[rho])
                   for schedule, by_radius in schedules.items()}
            for task, schedules in trees.items()}


def judge(rows: Rows) -> Verdict:
    """Judge per task whether the schedule "lr" or "gap" beats the constant radius."""
    best = at_best(rows)
    helped = [judge_any([sam.judge_better(task, schedules[name][1], schedules["constant"][1])
                         for name in ("lr", "gap")]) for task, schedules in best.items()]
    return Verdict(judge_all(helped), "; ".join(
        f"{task}, {sam.METRIC[task]}: " + ", ".join(
            f"{number(average(values))} ({schedule})"
            for schedule, (_, values) in schedules.items())
        for task, schedules in best.items()))


def tables(rows: Rows) -> dict:
    """Return a table of the best radius of every schedule and its value."""
    plain = rows.where(optimizer="AdamW")
    titles = (f"{schedule}: best rho, value" for schedule in sam.SCHEDULES)
    lines: Lines = [("task, metric", "AdamW", *titles)]
    for task, schedules in at_best(rows).items():
        lines.append((f"{task}, {sam.METRIC[task]}", plain.values(task=task),
                      *(f"{rho:g}: {interval(mean(values))}"
                        for rho, values in schedules.values())))
    return {"values": lines, "rates": ", ".join(
        f"{task} {lr:g}" for task, by_rate in plain.tree("task", "lr").items() for lr in by_rate)}
