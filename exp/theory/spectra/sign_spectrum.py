"""Does sign() destroy a matrix's spectrum, as the paper says of AdaMuon?"""

import torch
from torch import Tensor

from exp.harness.diagnostics import spectrum
from exp.report.statistics import mean
from exp.report.tables import interval, markdown
from exp.theory.training import SMALL, built, matrices, steps

SAYS = "sign(G) collapses the spectral entropy of G (the \"sign catastrophe\" of AdaMuon)"
SOURCE = "paper 2.3.1"
RULE = ("holds if sign lowers the normalised entropy of the singular values of real momentum at "
        "every point of training of every task, on the mean over matrices and seeds; holds partly "
        "if at some; does not hold if at none.")
# Task -> steps at which it is looked at, tables for `built`.
TASKS = {"grokking": ((1, 8, 40, 160, 400), {}), "cifar": ((1, 8, 40, 160), SMALL["cifar"]),
         "wikitext2": ((1, 8, 40, 160), SMALL["wikitext2"])}
OPTIMIZER = {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 1.0}
SIZE, RANK = 128, 4
# Rule -> settings, and what its state calls the momentum that goes in.
AFTER = {
    "AdaMuon": ({"name": "adamuon"}, "momentum_buffer"),
    "NorMuon": ({"name": "normuon"}, "momentum_buffer"),
    "ARS (old)": ({"name": "ars"}, "exp_avg"),
}
AFTER_POINTS = (1, 40)


def measure(seeds: list[int]) -> dict:
    """Entropy before and after sign, one value a seed: of Gaussian and low-rank matrices, and of
    AdamW's momentum on each task (mean over its hidden matrices)."""
    found: dict = {}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        gaussian = torch.randn(SIZE, SIZE, generator=generator)
        left, right = (torch.randn(SIZE, RANK, generator=generator) for _ in range(2))
        _note(found, "Gaussian", [gaussian])
        _note(found, f"rank {RANK}", [left @ right.T])
        _note(found, f"rank {RANK} plus 10 % noise",
              [left @ right.T + 0.1 * RANK**0.5 * gaussian])
        for task, (points, tables) in TASKS.items():
            run = built(OPTIMIZER, seed, task, **tables)
            for step in steps(run, points[-1]):
                if step in points:
                    momenta = [run.optimizer.state[p]["exp_avg"]
                               for p in matrices(run.model).values()]
                    _note(found, f"momentum at step {step}, {task}", momenta)
        for rule in AFTER:
            for step, (momenta, updates) in momenta_and_updates(rule, seed).items():
                entry = found.setdefault(f"{rule}, update {step}", {"before": [], "after": []})
                entry["before"].append(_entropy(momenta))
                entry["after"].append(_entropy(updates))
    return found


def momenta_and_updates(rule: str, seed: int) -> dict[int, tuple[list[Tensor], list[Tensor]]]:
    """Step -> the momenta and the updates of all hidden matrices, without decay."""
    settings, key = AFTER[rule]
    run = built({**settings, "lr": 1e-3, "weight_decay": 0.0}, seed)
    hidden = list(matrices(run.model).values())
    found: dict = {}
    before = [p.detach().clone() for p in hidden]
    for step in steps(run, AFTER_POINTS[-1]):
        if step in AFTER_POINTS:
            found[step] = ([run.optimizer.state[p][key].clone() for p in hidden],
                           [p.detach() - b for p, b in zip(hidden, before, strict=True)])
        before = [p.detach().clone() for p in hidden]
    return found


def _entropy(tensors: list[Tensor]) -> float:
    values = [spectrum(tensor)["entropy"] for tensor in tensors]
    return sum(values) / len(values)


def _note(found: dict, name: str, tensors: list[Tensor]) -> None:
    entry = found.setdefault(name, {"before": [], "after": []})
    entry["before"].append(_entropy(tensors))
    entry["after"].append(_entropy([tensor.sign() for tensor in tensors]))


def judge(found: dict) -> str:
    """The verdict of RULE."""
    real = [entry for name, entry in found.items() if name.startswith("momentum")]
    lowered = sum(sum(entry["after"]) < sum(entry["before"]) for entry in real)
    return {0: "does not hold", len(real): "holds"}.get(lowered, "holds partly")


def figure(found: dict) -> str:
    """The range of the change over real momenta."""
    changes = [mean(entry["after"]).value - mean(entry["before"]).value
               for name, entry in found.items() if name.startswith("momentum")]
    return f"entropy of real momentum changes by {min(changes):+.2f} to {max(changes):+.2f}"


def render(found: dict) -> str:
    """The numbers as two tables: of sign, and of whole rules."""
    tables = {False: [("matrix", "entropy", "entropy of its sign", "change")],
              True: [("rule", "entropy of its momentum", "entropy of its update", "change")]}
    for name, entry in found.items():
        changes = [b - a for a, b in zip(entry["before"], entry["after"], strict=True)]
        tables["update" in name].append((name, *(interval(mean(values)) for values in (
            entry["before"], entry["after"], changes))))
    return ("Entropy of the singular values, normalised: 1 where all are equal, 0 for rank one. "
            "The grokking model as published, a ResNet-18 of width 4, a Qwen3 of one layer.\n\n"
            + markdown(tables[False]) + "\n\nWhat the rules make of their momentum (of the last "
            "gradients, before Nesterov), mean over the hidden matrices. AdaMuon orthogonalizes "
            "its sign and divides entry by entry; NorMuon evens out the rows; ARS, old and new, "
            "at its first step orthogonalizes the sign of the gradient itself: whitening with the "
            "second moment of one gradient is the sign.\n\n" + markdown(tables[True]))
