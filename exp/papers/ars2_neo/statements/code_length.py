"""Do optimizers with flatter minima also have shorter prequential code lengths?"""

import math
from collections.abc import Iterable

import torch

from exp.harness.curvature import curvature
from exp.papers.ars2_neo.statements.flatness import (
    AGREES,
    EXAMPLES,
    RULES,
    TASKS,
    correlations,
    trained,
)
from exp.report.evidence import sample
from exp.report.rows import Row, Rows
from exp.report.tables import interval
from exp.theory.statement import Verdict, agreement_of, means_table
from exp.theory.training import examples

PARTS = (8, 4, 2, 1)  # blocks end at 1/8, 1/4, 1/2 and all of the training set
ENDS = ", ".join(f"1/{part}" for part in PARTS[:-1])
CODE, SHARP = "code length (bits per label)", "top eigenvalue"
GRID = {"task": TASKS, "optimizer": RULES}


def measure(seeds: list[int], task: str, optimizer: str) -> Iterable[Row]:
    """Yield the code length, and the curvature of the model trained on all examples."""
    for seed in seeds:
        run, _, loss = trained(RULES[optimizer], task, seed)
        batch = tuple(tensor[:EXAMPLES] for tensor in examples(run))
        params = [p for p in run.model.parameters() if p.requires_grad]
        yield Row(SHARP, seed, curvature(run.model, batch, params, seed)["top_eigenvalue"])
        yield Row(CODE, seed, code_length(optimizer, task, seed))
        yield Row("training loss", seed, loss)


def code_length(optimizer: str, task: str, seed: int) -> float:
    """Return the prequential code length in bits per training label."""
    run, *_ = trained(RULES[optimizer], task, seed, most=0)
    count = len(run.data.train.tensors[0])
    with torch.no_grad():
        classes = run.model(examples(run, 1)[0]).shape[-1]
    ends = [count // part for part in PARTS]
    nats = ends[0] * math.log(classes)
    for start, end in zip(ends, ends[1:], strict=False):
        run, *_ = trained(RULES[optimizer], task, seed, count=start)
        block = tuple(tensor[start:] for tensor in examples(run, end))
        with torch.no_grad():
            nats += (end - start) * float(run.objective.measure(run.objective.loss_fn, *block)[0])
    return nats / math.log(2) / count


def agreement(rows: Rows) -> dict:
    """Map each task to the rank correlation per seed."""
    return {task: sample(correlations(by_name, SHARP, CODE))
            for task, by_name in rows.tree("task", "optimizer", "axis").items()}


def judge(rows: Rows) -> Verdict:
    """Judge by the rank correlations."""
    return agreement_of(agreement(rows), AGREES)


def tables(rows: Rows) -> dict:
    """Return tables of the correlations with code length, and of all measurements."""
    lines = [("rank correlation of the code length with", "the top eigenvalue")]
    lines += [(task, interval(rank.estimate)) for task, rank in agreement(rows).items()]
    return {"correlations": lines, "means": means_table(rows)}
