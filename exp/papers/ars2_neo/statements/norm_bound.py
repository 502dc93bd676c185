"""How large do weights become under weight decay lambda, and is 1 / lambda a bound?"""

from collections.abc import Iterable

import torch

from exp.report.evidence import sample
from exp.report.judgement import judge_all, judge_below
from exp.report.rows import Row, Rows
from exp.report.tables import interval
from exp.theory.statement import Verdict
from exp.theory.training import built, matrices, steps
from optimizer.parts.polar import as_matrices

LR, DECAY, STEPS = 0.02, 1.0, 250
FORGOTTEN = STEPS * LR * DECAY
RULES: dict[str, dict] = {
    "Muon": {"name": "muon"}, "Muon, Moonlight's scale": {"name": "muon", "scale": "moonlight"},
    "ARS2-Neo Base": {"name": "ars2_neo", "k": 0}, "AdamW": {"name": "adamw"}}
JUDGED = ("Muon", "ARS2-Neo Base")
GRID = {"optimizer": RULES}


def measure(seeds: list[int], optimizer: str) -> Iterable[Row]:
    """Yield the largest spectral norms of the final weights and of the last update."""
    for seed in seeds:
        rest = {"adamw": {"lr": 3e-3}, "routing": "role"}
        run = built({**RULES[optimizer], "lr": LR, "weight_decay": DECAY, **rest}, seed,
                    scale="small")
        for step in steps(run, STEPS):
            if step == STEPS - 1:
                before = {name: p.detach().clone() for name, p in matrices(run.model).items()}
        after = {name: p.detach() for name, p in matrices(run.model).items()}
        weights = {name: largest(w) for name, w in after.items()}
        updates = {name: largest((1 - LR * DECAY) * before[name] - w) / LR
                   for name, w in after.items()}
        yield Row("lambda ||W||", seed, DECAY * max(weights.values()))
        yield Row("update", seed, max(updates.values()))
        yield Row("of the bound", seed, max(DECAY * weights[name] / updates[name]
                                            for name in weights))


def largest(tensor: torch.Tensor) -> float:
    """Return the largest singular value over all matrices of a stack."""
    return float(torch.linalg.matrix_norm(as_matrices(tensor), 2).max())


def judge(rows: Rows) -> Verdict:
    """Judge by the norms of Muon's and of ARS2-Neo's weights."""
    norms = {name: sample(rows.values(optimizer=name, axis="lambda ||W||"))
             for name in rows.levels("optimizer")}
    return Verdict(judge_all([judge_below(norms[name], 1.0) for name in JUDGED]),
                   "lambda times the largest spectral norm: " + ", ".join(
                       f"{interval(norm.estimate)} ({name})" for name, norm in norms.items()))
