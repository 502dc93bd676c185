"""The singular values of each optimizer's update, and the paper's identity for those of ARS."""

from collections.abc import Iterable

import torch

from exp.harness.build import Built
from exp.harness.diagnostics import spectrum
from exp.report.judgement import judge_exact
from exp.report.rows import Row, Rows
from exp.report.tables import number
from exp.theory.statement import Verdict
from exp.theory.training import built, matrices, steps
from optimizer.ars2_neo import ARS2Neo
from optimizer.parts.polar import as_matrices

LR, STEPS = 1e-3, 40
TOLERANCE = 0.05
TASKS = {"grokking": "full", "cifar": "small", "wikitext2": "small"}
RULES: dict[str, dict] = {
    "ARS2-Neo Base": {"name": "ars2_neo", "k": 0},
    "ARS2-Neo Base, exact msign": {"name": "ars2_neo", "k": 0, "orthogonalizer": "svd"},
    "RMSuon": {"name": "rmsuon"}, "Muon": {"name": "muon"}, "Muon²": {"name": "muon_squared"},
    "AdaMuon": {"name": "adamuon"}, "NorMuon": {"name": "normuon"}, "SOAP": {"name": "soap"},
    "AdamW": {"name": "adamw"},
}
GRID = {"task": TASKS, "optimizer": RULES}
KEYS = ("task", "optimizer", "axis")
MEASURES = ("condition", "entropy", "orthogonality_error")


def measure(seeds: list[int], task: str, optimizer: str) -> Iterable[Row]:
    """Yield measures of the spectrum of the STEPS-th update, means over matrices, and for ARS the
    extreme singular values over lr ||g_nat||."""
    for seed in seeds:
        run = built({**RULES[optimizer], "lr": LR, "weight_decay": 0.0}, seed, task, TASKS[task])
        for axis, value in measures(run).items():
            yield Row(axis, seed, value)


def measures(run: Built) -> dict[str, float]:
    """Return the measures of a run's STEPS-th update, see `measure`."""
    before: dict = {}
    for step in steps(run, STEPS):
        if step == STEPS - 1:
            before = {n: p.detach().clone() for n, p in matrices(run.model).items()}
    updates = {n: p.detach() - before[n] for n, p in matrices(run.model).items()}
    spectra = [spectrum(update) for update in updates.values()]
    result = {key: sum(m[key] for m in spectra) / len(spectra) for key in MEASURES}
    if isinstance(run.optimizer, ARS2Neo):
        ends = [extremes(run, p, updates[n]) for n, p in matrices(run.model).items()]
        result["smallest"] = min(low for low, _ in ends)
        result["largest"] = max(high for _, high in ends)
    return result


def extremes(run: Built, p: torch.Tensor, update: torch.Tensor) -> tuple[float, float]:
    """Return the smallest and largest singular value of an ARS update over lr ||g_nat||_F, over all
    matrices of a stack, each with its own norm."""
    state = run.optimizer.state[p]
    group = next(g for g in run.optimizer.param_groups if any(q is p for q in g["params"]))
    beta1, beta2 = group["betas"]
    m = state["exp_avg"] / (1 - beta1 ** state["step"])
    natural = m / ((state["exp_avg_sq"] / (1 - beta2 ** state["step"])).sqrt() + group["eps"])
    energy = torch.linalg.matrix_norm(as_matrices(natural))
    values = torch.linalg.svdvals(as_matrices(update)) / (LR * energy).unsqueeze(-1)
    return float(values.min()), float(values.max())


def judge(rows: Rows) -> Verdict:
    """Judge by ARS's extreme singular values: one counterexample refutes an identity."""
    ends = {}
    for name in ("ARS2-Neo Base", "ARS2-Neo Base, exact msign"):
        ours = rows.where(optimizer=name)
        ends[name] = min(ours.values(axis="smallest")), max(ours.values(axis="largest"))
    least, most = ends["ARS2-Neo Base"]
    return Verdict(
        judge_exact(least >= 1 - TOLERANCE and most <= 1 + TOLERANCE),
        "singular values divided by lr norm(g_nat): " + ", ".join(
            f"{number(low)} to {number(high)} ({name})" for name, (low, high) in ends.items()))


def tables(rows: Rows) -> dict:
    """Return one table per task."""
    def ends(axes):
        if "smallest" not in axes:
            return ""
        return f"{number(min(axes['smallest']))} to {number(max(axes['largest']))}"

    return {task: [(f"{task}: update of", "condition number", "entropy", "orthogonality error",
                    "singular values over lr norm(g_nat)"),
                   *((name, *(axes[axis] for axis in MEASURES), ends(axes))
                     for name, axes in by_name.items())]
            for task, by_name in rows.tree(*KEYS).items()}
