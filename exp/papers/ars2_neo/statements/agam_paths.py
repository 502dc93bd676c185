"""Which of its three paths does AGAM take?"""

from collections.abc import Iterable

from exp.report.evidence import sample
from exp.report.judgement import judge_above, judge_all
from exp.report.rows import Row, Rows
from exp.report.tables import interval
from exp.theory.statement import Verdict
from exp.theory.training import built, steps

STEPS, ALL = 400, 0.9
PATHS = ("sam", "middle", "gam")
GRID = {"k": (10, 1)}


def measure(seeds: list[int], k: int) -> Iterable[Row]:
    """Yield the share of each path in sync steps, and the gradient evaluations per step."""
    table = {"name": "ars2_neo", "lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 1.0, "k": k,
             "adaptive_sync": True, "adaptive_lambda": 0.1, "energy_scope": "tensor",
             "sharpness_paths": "agam", "routing": "shape"}
    for seed in seeds:
        run = built(table, seed, scale="small")
        list(steps(run, STEPS))
        scalars = run.optimizer.param_groups[0]["scalars"]["ARS2Neo"]
        counts = [scalars[f"{path}_paths"] for path in PATHS]
        for path, count in zip(PATHS, counts, strict=True):
            yield Row(f"{path} path", seed, count / sum(counts))
        yield Row("evaluations", seed, run.objective.gradient_evaluations / STEPS)


def judge(rows: Rows) -> Verdict:
    """Judge by the share of the SAM path, for both k."""
    shares = {k: sample(values) for k, values in rows.where(axis="sam path").tree("k").items()}
    return Verdict(judge_all([judge_above(share, ALL) for share in shares.values()]),
                   "share of the SAM path " + ", ".join(
                       f"{interval(share.estimate)} (k = {k})" for k, share in shares.items()))
