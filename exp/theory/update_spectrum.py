"""The singular values of each optimizer's update, and the identity that the paper has for ARS."""

import math

import torch

from exp.harness.diagnostics import spectrum
from exp.harness.statistics import mean
from exp.harness.tables import interval, markdown, number
from exp.theory.training import built, matrices, steps

SAYS = "ARS keeps dW^T dW = lr^2 norm(g_nat)^2 I: every update has condition number 1"
SOURCE = "paper 2.4"
RULE = ("holds if all singular values of ARS2-Neo Base's update as released (five Newton-Schulz "
        "steps) are within 5 % of lr norm(g_nat); holds partly if they are with an exact "
        "orthogonalization only; else it does not hold.")
LR, STEPS = 1e-3, 40
TOLERANCE = 0.05
RULES = {
    "ARS2-Neo Base": {"name": "ars2_neo", "k": 0},
    "ARS2-Neo Base, exact msign": {"name": "ars2_neo", "k": 0, "orthogonalizer": "svd"},
    "RMSuon": {"name": "rmsuon"}, "Muon": {"name": "muon"}, "Muon²": {"name": "muon_squared"},
    "AdaMuon": {"name": "adamuon"}, "NorMuon": {"name": "normuon"}, "SOAP": {"name": "soap"},
    "AdamW": {"name": "adamw"},
}
MEASURES = ("condition", "entropy", "orthogonality_error")


def measure(seeds: list[int]) -> dict:
    """Per rule, of the STEPS-th update of the grokking model, one value a seed: measures of
    `spectrum`, means over matrices, and for ARS the extreme singular values over lr ||g_nat||."""
    found: dict = {}
    for seed in seeds:
        for label, settings in RULES.items():
            run = built({**settings, "lr": LR, "weight_decay": 0.0}, seed)
            before: dict = {}
            for step in steps(run, STEPS):
                if step == STEPS - 1:
                    before = {n: p.detach().clone() for n, p in matrices(run.model).items()}
            entry = found.setdefault(label, {})
            updates = {n: p.detach() - before[n] for n, p in matrices(run.model).items()}
            measured = [spectrum(update) for update in updates.values()]
            for key in MEASURES:
                values = [m[key] for m in measured]
                entry.setdefault(key, []).append(sum(values) / len(values))
            if settings["name"] == "ars2_neo":
                ends = [extremes(run, p, updates[n]) for n, p in matrices(run.model).items()]
                for key, value in (("smallest", min(low for low, _ in ends)),
                                   ("largest", max(high for _, high in ends))):
                    entry.setdefault(key, []).append(value)
    return found


def extremes(run, p: torch.Tensor, update: torch.Tensor) -> tuple[float, float]:
    """Smallest and largest singular value of an ARS update over lr ||g_nat||_F, of a stack over
    all its matrices, each with its own norm."""
    state = run.optimizer.state[p]
    group = next(g for g in run.optimizer.param_groups if any(q is p for q in g["params"]))
    beta1, beta2 = group["betas"]
    m = state["exp_avg"] / (1 - beta1 ** state["step"])
    natural = m / ((state["exp_avg_sq"] / (1 - beta2 ** state["step"])).sqrt() + group["eps"])
    energy = torch.linalg.matrix_norm(natural)
    values = torch.linalg.svdvals(update) / (LR * energy).unsqueeze(-1)
    return float(values.min()), float(values.max())


def judge(found: dict) -> str:
    """The verdict of RULE."""
    for label, verdict in (("ARS2-Neo Base", "holds"),
                           ("ARS2-Neo Base, exact msign", "holds partly")):
        entry = found[label]
        if all(math.isclose(value, 1.0, abs_tol=TOLERANCE)
               for value in (*entry["smallest"], *entry["largest"])):
            return verdict
    return "does not hold"


def render(found: dict) -> str:
    """The numbers as a table."""
    lines = [("update of", "condition number", "entropy", "orthogonality error",
              "singular values over lr norm(g_nat)")]
    for label, entry in found.items():
        ends = ""
        if "smallest" in entry:
            ends = f"{number(min(entry['smallest']))} to {number(max(entry['largest']))}"
        lines.append((label, *(interval(mean(entry[key])) for key in MEASURES), ends))
    return (f"Update {STEPS} of the grokking model (hidden matrices, lr {LR:g}, no decay, else "
            "defaults). Entropy 1 and orthogonality error 0: all singular values are equal. A "
            "matrix with a near-null direction keeps it: five steps do not reach 1 from there."
            "\n\n" + markdown(lines))
