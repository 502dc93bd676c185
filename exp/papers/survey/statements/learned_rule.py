"""Does a learned rule of 347 weights beat tuned AdamW and its initial weights on a held-out task?
"""

import math
from collections.abc import Callable, Iterable

from exp.papers.survey import meta_train
from exp.papers.survey.meta_train import EXAMPLES, STEPS, celo2, final_loss
from exp.report.evidence import Evidence, sample
from exp.report.judgement import judge_all, judge_below
from exp.report.rows import Row, Rows, rows_of
from exp.report.tables import interval
from exp.theory import sweeps
from exp.theory.statement import Verdict

__all__ = ["EXAMPLES", "STEPS"]  # for the page

HELD_OUT, LEAST = "cifar", 0.01
START = "Celo2, start"
RULES: dict[str, tuple[Callable[[float], dict], float]] = {  # and the grid's first learning rate
    "AdamW": (sweeps.adamw, 2**-6), "Muon": (sweeps.muon, 2**-4),
    START: (lambda lr: celo2(lr, weights="start"), 2**-6), "Celo2": (celo2, 2**-6)}
GRID = {"task": (*meta_train.TASKS, HELD_OUT), "optimizer": RULES}


def measure(seeds: list[int], task: str, optimizer: str) -> Iterable[Row]:
    """Return the losses of all seeds at the rate that is best for a separate tuning seed."""
    rule, start = RULES[optimizer]
    tuning = meta_train.FIRST_SEED - 1
    lr = sweeps.best_of_grid(sweeps.sweep(lambda lr: [final_loss(rule(lr), task, tuning)], start))
    return rows_of({lr: [final_loss(rule(lr), task, seed) for seed in seeds]}, ("lr",), seeds,
                   axis="loss")


def ratio(rows: Rows, task: str, other: str) -> Evidence:
    """Return the trained rule's loss over another's, paired by seed; infinity for a diverged run's
    loss."""
    by_rule = rows.where(task=task).tree("optimizer")
    ours, theirs = ([math.inf if loss is None else loss for loss in by_rule[name]]
                    for name in ("Celo2", other))
    return sample([a / b for a, b in zip(ours, theirs, strict=True)], log=True)


def judge(rows: Rows) -> Verdict:
    """Judge by the ratios to AdamW and to the initial weights on the held-out task."""
    ratios = {other: ratio(rows, HELD_OUT, other) for other in ("AdamW", START)}
    return Verdict(judge_all([judge_below(found, 1.0, LEAST) for found in ratios.values()]),
                   "Celo2's loss: " + ", ".join(
                       f"{interval(found.estimate)} times that of {name}"
                       for name, found in ratios.items()))


def tables(rows: Rows) -> dict:
    """Rates and losses of every rule on every task, and the trained rule's loss over each."""
    return {"losses": [("task", "rule", "lr", "loss", "Celo2's loss over it"), *(
        (task, name, f"{lr:g}", losses,
         None if name == "Celo2" else ratio(rows, task, name).estimate)
        for task, by_rule in rows.tree("task", "optimizer", "lr").items()
        for name, by_rate in by_rule.items() for lr, losses in by_rate.items())]}
