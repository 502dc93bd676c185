"""The singular values of each optimizer's update, and the identity that the paper has for ARS."""

import math

import torch

from exp.harness.build import Built
from exp.harness.diagnostics import spectrum
from exp.report.statistics import mean
from exp.report.tables import interval, markdown, number
from exp.theory.training import SMALL, built, matrices, steps
from optimizer.ars2_neo import ARS2Neo
from optimizer.parts.polar import as_matrices

SAYS = "ARS keeps dW^T dW = lr^2 norm(g_nat)^2 I: every update has condition number 1"
SOURCE = "paper 2.4"
RULE = ("holds if all singular values of ARS2-Neo Base's update as released (five Newton-Schulz "
        "steps) are within 5 % of lr norm(g_nat) on every task; holds partly if they are with an "
        "exact orthogonalization only; else it does not hold.")
LR, STEPS = 1e-3, 40
TOLERANCE = 0.05
TASKS = {"grokking": {}, "cifar": SMALL["cifar"], "wikitext2": SMALL["wikitext2"]}
RULES = {
    "ARS2-Neo Base": {"name": "ars2_neo", "k": 0},
    "ARS2-Neo Base, exact msign": {"name": "ars2_neo", "k": 0, "orthogonalizer": "svd"},
    "RMSuon": {"name": "rmsuon"}, "Muon": {"name": "muon"}, "Muon²": {"name": "muon_squared"},
    "AdaMuon": {"name": "adamuon"}, "NorMuon": {"name": "normuon"}, "SOAP": {"name": "soap"},
    "AdamW": {"name": "adamw"},
}
MEASURES = ("condition", "entropy", "orthogonality_error")


def measure(seeds: list[int]) -> dict:
    """Per task and rule, of the STEPS-th update, one value a seed: measures of `spectrum`, means
    over matrices, and for ARS the extreme singular values over lr ||g_nat||."""
    found: dict = {}
    for task, tables in TASKS.items():
        for label, settings in RULES.items():
            entry = found.setdefault(task, {}).setdefault(label, {})
            for seed in seeds:
                run = built({**settings, "lr": LR, "weight_decay": 0.0}, seed, task, **tables)
                for key, value in measures(run).items():
                    entry.setdefault(key, []).append(value)
    return found


def measures(run: Built) -> dict[str, float]:
    """Of the STEPS-th update of a run, see `measure`."""
    before: dict = {}
    for step in steps(run, STEPS):
        if step == STEPS - 1:
            before = {n: p.detach().clone() for n, p in matrices(run.model).items()}
    updates = {n: p.detach() - before[n] for n, p in matrices(run.model).items()}
    spectra = [spectrum(update) for update in updates.values()]
    found = {key: sum(m[key] for m in spectra) / len(spectra) for key in MEASURES}
    if isinstance(run.optimizer, ARS2Neo):
        ends = [extremes(run, p, updates[n]) for n, p in matrices(run.model).items()]
        found["smallest"] = min(low for low, _ in ends)
        found["largest"] = max(high for _, high in ends)
    return found


def extremes(run: Built, p: torch.Tensor, update: torch.Tensor) -> tuple[float, float]:
    """Smallest and largest singular value of an ARS update over lr ||g_nat||_F, of a stack over
    all its matrices, each with its own norm."""
    state = run.optimizer.state[p]
    group = next(g for g in run.optimizer.param_groups if any(q is p for q in g["params"]))
    beta1, beta2 = group["betas"]
    m = state["exp_avg"] / (1 - beta1 ** state["step"])
    natural = m / ((state["exp_avg_sq"] / (1 - beta2 ** state["step"])).sqrt() + group["eps"])
    energy = torch.linalg.matrix_norm(as_matrices(natural))
    values = torch.linalg.svdvals(as_matrices(update)) / (LR * energy).unsqueeze(-1)
    return float(values.min()), float(values.max())


def judge(found: dict) -> str:
    """The verdict of RULE."""
    for label, verdict in (("ARS2-Neo Base", "holds"),
                           ("ARS2-Neo Base, exact msign", "holds partly")):
        if all(math.isclose(value, 1.0, abs_tol=TOLERANCE) for by_rule in found.values()
               for key in ("smallest", "largest") for value in by_rule[label][key]):
            return verdict
    return "does not hold"


def figure(found: dict) -> str:
    """ARS's condition numbers."""
    return "condition number " + ", ".join(
        f"{number(mean(by_rule['ARS2-Neo Base']['condition']).value)} ({task})"
        for task, by_rule in found.items())


def render(found: dict) -> str:
    """The numbers, a table a task."""
    tables = []
    for task, by_rule in found.items():
        lines = [(f"{task}: update of", "condition number", "entropy", "orthogonality error",
                  "singular values over lr norm(g_nat)")]
        for label, entry in by_rule.items():
            ends = ""
            if "smallest" in entry:
                ends = f"{number(min(entry['smallest']))} to {number(max(entry['largest']))}"
            lines.append((label, *(interval(mean(entry[key])) for key in MEASURES), ends))
        tables.append(markdown(lines))
    return (f"Update {STEPS} of the hidden matrices (lr {LR:g}, no decay, else defaults): the "
            "grokking model as published, a ResNet-18 of width 4, a Qwen3 of one layer. Entropy 1 "
            "and orthogonality error 0: all singular values are equal. A matrix with a near-null "
            "direction keeps it: five steps do not reach 1 from there.\n\n"
            + "\n\n".join(tables))
