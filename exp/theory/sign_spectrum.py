"""Does sign() destroy a matrix's spectrum, as the paper says of AdaMuon?"""

import torch
from torch import Tensor

from exp.harness.diagnostics import spectrum
from exp.harness.statistics import mean
from exp.harness.tables import interval, markdown
from exp.theory.grokking_steps import built, matrices, steps

SAYS = "sign(G) collapses the spectral entropy of G (the \"sign catastrophe\" of AdaMuon)"
SOURCE = "paper 2.3.1"
RULE = ("holds if sign lowers the normalised entropy of the singular values of real momentum at "
        "every point of training, on the mean over matrices and seeds; holds partly if at some; "
        "does not hold if at none.")
POINTS = (1, 8, 40, 160, 400)  # steps
SIZE, RANK = 128, 4


def measure(seeds: list[int]) -> dict:
    """Entropy before and after sign, one value a seed: of Gaussian and low-rank matrices, and of
    AdamW's momentum on the grokking task (mean over its hidden matrices)."""
    found: dict = {}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        gaussian = torch.randn(SIZE, SIZE, generator=generator)
        left, right = (torch.randn(SIZE, RANK, generator=generator) for _ in range(2))
        _note(found, "Gaussian", [gaussian])
        _note(found, f"rank {RANK}", [left @ right.T])
        _note(found, f"rank {RANK} plus 10 % noise",
              [left @ right.T + 0.1 * RANK**0.5 * gaussian])
        run = built({"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 1.0}, seed)
        for step in steps(run, POINTS[-1]):
            if step in POINTS:
                momenta = [run.optimizer.state[p]["exp_avg"]
                           for p in matrices(run.model).values()]
                _note(found, f"momentum at step {step}", momenta)
    return found


def _note(found: dict, name: str, tensors: list[Tensor]) -> None:
    entry = found.setdefault(name, {"before": [], "after": []})
    for key, change in (("before", lambda t: t), ("after", torch.sign)):
        values = [spectrum(change(tensor))["entropy"] for tensor in tensors]
        entry[key].append(sum(values) / len(values))


def judge(found: dict) -> str:
    """The verdict of RULE."""
    real = [entry for name, entry in found.items() if name.startswith("momentum")]
    lowered = sum(sum(entry["after"]) < sum(entry["before"]) for entry in real)
    return {0: "does not hold", len(real): "holds"}.get(lowered, "holds partly")


def render(found: dict) -> str:
    """The numbers as a table."""
    lines = [("matrix", "entropy", "entropy of its sign", "change")]
    for name, entry in found.items():
        changes = [b - a for a, b in zip(entry["before"], entry["after"], strict=True)]
        lines.append((name, *(interval(mean(values)) for values in (
            entry["before"], entry["after"], changes))))
    return ("Entropy of the singular values, normalised: 1 where all are equal, 0 for rank one. "
            "ARS2-Neo's own first step orthogonalizes sign(g): whitening with the second moment "
            "of one gradient is the sign.\n\n" + markdown(lines))
