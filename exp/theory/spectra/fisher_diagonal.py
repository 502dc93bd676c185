"""Is Adam's second moment the diagonal of the Fisher information?"""

import copy

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from exp.report.statistics import mean
from exp.report.tables import interval, markdown
from exp.theory.training import SMALL, built, examples, steps

SAYS = "Adam's second moment is the diagonal of the Fisher information"
SOURCE = "paper 2.1"
RULE = ("holds if, at every point of training of every task, the rank correlation over all "
        "parameters is at least 0.9 and the relative error after the best single scale at most "
        "0.5; holds partly if the rank correlation is at least 0.5 at every point; else "
        "it does not hold.")
# Task -> steps at which it is looked at, examples, tables for `built`.
TASKS = {
    "grokking": ((8, 40, 160, 400), 512, {}),
    "cifar": ((8, 40, 160), 256, SMALL["cifar"]),
    "wikitext2": ((8, 40, 160), 128, SMALL["wikitext2"]),
}
OPTIMIZER = {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 1.0}
AGAINST = ("Fisher", "empirical Fisher")


def fisher_diagonals(model: nn.Module, inputs: Tensor, labels: Tensor,
                     generator: torch.Generator) -> dict[str, Tensor]:
    """Mean squared gradient of single examples, flat over all parameters: "Fisher" with labels
    drawn from the model, "empirical Fisher" with the true ones.

    inputs (n, ...) whose logits are (1, classes) or (1, sequence, classes); of a sequence the
    gradients of all its tokens are summed (with drawn labels they are uncorrelated). Batch norms
    take the statistics of all inputs: running ones lag far behind early in training.
    """
    model = copy.deepcopy(model)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        with torch.no_grad():
            model.train()(inputs)
    model.eval()
    params = list(model.parameters())
    totals = {name: [torch.zeros_like(p) for p in params] for name in AGAINST}
    for row, own in zip(inputs.split(1), labels.split(1), strict=True):
        logits = model(row).flatten(0, -2)
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator).squeeze(1)
        for name, targets in zip(AGAINST, (drawn, own.flatten()), strict=True):
            loss = F.cross_entropy(logits, targets, reduction="sum")
            each = torch.autograd.grad(loss, params, retain_graph=name == AGAINST[0])
            torch._foreach_addcmul_(totals[name], each, each)
    return {name: torch.cat([t.flatten() for t in total]) / len(inputs)
            for name, total in totals.items()}


def agreement(second_moment: Tensor, diagonal: Tensor) -> dict[str, float]:
    """Rank correlation, cosine, and the relative error ||c v - F|| / ||F|| at the best scale c."""
    v, f = second_moment.double(), diagonal.double()
    product = v @ f
    cosine = product / (v.norm() * f.norm())
    return {"rank_correlation": float(spearmanr(v.numpy(), f.numpy()).statistic),
            "cosine": float(cosine), "error": float((1 - cosine**2).clamp_min(0).sqrt())}


def measure(seeds: list[int]) -> dict:
    """AdamW on each task: at each point the agreement with both diagonals, one value a seed."""
    found: dict = {}
    for task, (points, count, tables) in TASKS.items():
        for seed in seeds:
            run = built(OPTIMIZER, seed, task, **tables)
            inputs, labels = examples(run, count)
            generator = torch.Generator().manual_seed(seed)
            for step in steps(run, points[-1]):
                if step not in points:
                    continue
                moment = torch.cat([run.optimizer.state[p]["exp_avg_sq"].flatten()
                                    for p in run.model.parameters()])
                diagonals = fisher_diagonals(run.model, inputs, labels, generator)
                for name, diagonal in diagonals.items():
                    entry = found.setdefault(f"{task}, step {step}", {}).setdefault(name, {})
                    for key, value in agreement(moment, diagonal).items():
                        entry.setdefault(key, []).append(value)
    return found


def judge(found: dict) -> str:
    """The verdict of RULE, against the true Fisher diagonal."""
    def average(key: str) -> list[float]:
        return [sum(entry["Fisher"][key]) / len(entry["Fisher"][key]) for entry in found.values()]

    if min(average("rank_correlation")) >= 0.9 and max(average("error")) <= 0.5:
        return "holds"
    return "holds partly" if min(average("rank_correlation")) >= 0.5 else "does not hold"


def figure(found: dict) -> str:
    """The ranges over all points."""
    ranks, errors = ([mean(entry["Fisher"][key]).value for entry in found.values()]
                     for key in ("rank_correlation", "error"))
    return (f"rank correlation {min(ranks):.2f} to {max(ranks):.2f}, error at the best scale "
            f"{min(errors):.2f} to {max(errors):.2f}")


def render(found: dict) -> str:
    """The numbers as a table."""
    keys = ("rank_correlation", "cosine", "error")
    lines = [("AdamW at", *(f"{name}: {key.replace('_', ' ')}" for name in AGAINST
                            for key in keys))]
    for point, entry in found.items():
        lines.append((point, *(interval(mean(entry[name][key])) for name in AGAINST
                               for key in keys)))
    counts = ", ".join(f"{task} {count}" for task, (_, count, _) in TASKS.items())
    return ("Over all parameters of the grokking model, of a ResNet-18 of width 4 and of a Qwen3 "
            f"of one layer; the diagonals are of training examples ({counts}; sequences, their "
            "tokens summed), each with labels drawn from the model (Fisher) or its own "
            "(empirical), batch norms at the statistics of these images (a first run took the "
            "running ones, which at step 8 are mostly still their initial values: rank "
            "correlation 0.06). "
            "Adam averages squares of gradients of whole batches: where the mean gradient "
            "dominates, its square is what Adam sees.\n\n" + markdown(lines))
