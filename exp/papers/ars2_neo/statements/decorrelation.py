"""Are the rows of matrices less correlated after orthogonal updates than after AdamW's?"""

import math
from collections.abc import Iterable

import torch

from exp.papers.ars2_neo.statements.flatness import (
    ADAMW,
    ARS,
    REST,
    trained,
)
from exp.report.evidence import sample
from exp.report.judgement import judge_all, judge_below
from exp.report.rows import Row, Rows
from exp.report.tables import interval
from exp.theory.statement import Verdict
from exp.theory.training import matrices
from optimizer.parts.polar import as_matrices

LEAST = 0.005
RANDOM = math.sqrt(2 / (math.pi * 64))
RULES = {"AdamW": ADAMW, "ARS2-Neo Base": {**ARS, "k": 0},
         "Muon": {"name": "muon", "lr": 0.02, "weight_decay": 0.1, "adamw": REST},
         "RMSuon": {"name": "rmsuon", "lr": 1e-3, "weight_decay": 0.1, "adamw": REST}}
GRID = {"optimizer": RULES}


def measure(seeds: list[int], optimizer: str) -> Iterable[Row]:
    """Yield the mean absolute cosine between rows, averaged over matrices, before and after
    training."""
    for seed in seeds:
        for axis, most in (("at the start", 0), ("at the end", None)):
            run, _, loss = trained(RULES[optimizer], "grokking", seed, most)
            values = [likeness(p.detach()) for p in matrices(run.model).values()]
            yield Row(axis, seed, sum(values) / len(values))
        yield Row("training loss", seed, loss)


def likeness(tensor: torch.Tensor) -> float:
    """Return the mean |cos| of different rows of a matrix, over all matrices of a stack."""
    rows = torch.nn.functional.normalize(as_matrices(tensor).double(), dim=-1)
    cosines = (rows @ rows.mT).abs()
    m = cosines.shape[-1]
    return float((cosines.sum((-2, -1)) - m).mean() / (m * (m - 1)))


def judge(rows: Rows) -> Verdict:
    """Judge by the differences from AdamW."""
    ends = rows.where(axis="at the end").tree("optimizer")
    base = ends.pop("AdamW")
    less = {name: sample([a - b for a, b in zip(values, base, strict=True)])
            for name, values in ends.items()}
    return Verdict(judge_all([judge_below(change, 0.0, LEAST) for change in less.values()]),
                   "cosine minus AdamW's: " + ", ".join(
                       f"{interval(change.estimate)} ({name})" for name, change in less.items()))
