"""Is Adam's second moment the diagonal of the Fisher information?"""

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from exp.harness.statistics import mean
from exp.harness.tables import interval, markdown
from exp.theory.training import built, steps

SAYS = "Adam's second moment is the diagonal of the Fisher information"
SOURCE = "paper 2.1"
RULE = ("holds if, at every point of training, the rank correlation over all parameters is at "
        "least 0.9 and the relative error after the best single scale at most 0.5; holds partly "
        "if the rank correlation is at least 0.5 at every point; else it does not hold.")
POINTS = (8, 40, 160, 400)  # steps
EXAMPLES, CHUNK = 512, 64
AGAINST = ("Fisher", "empirical Fisher")


def fisher_diagonals(model: nn.Module, tokens: Tensor, labels: Tensor,
                     generator: torch.Generator) -> dict[str, Tensor]:
    """Mean squared gradient of single examples, flat over all parameters: "Fisher" with labels
    drawn from the model, "empirical Fisher" with the true ones. tokens (n, sequence)."""
    params = {name: p.detach() for name, p in model.named_parameters()}

    def loss(params: dict, row: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, params, (row.unsqueeze(0),))
        return F.cross_entropy(logits, label.unsqueeze(0))

    with torch.no_grad():
        drawn = torch.multinomial(model(tokens).softmax(-1), 1, generator=generator).squeeze(1)
    found = {}
    for name, targets in zip(AGAINST, (drawn, labels), strict=True):
        total = None
        for rows, row_labels in zip(tokens.split(CHUNK), targets.split(CHUNK), strict=True):
            each = vmap(grad(loss), in_dims=(None, 0, 0))(params, rows, row_labels)
            squares = torch.cat([each[key].square().sum(0).flatten() for key in params])
            total = squares if total is None else total + squares
        found[name] = total / len(tokens)
    return found


def agreement(second_moment: Tensor, diagonal: Tensor) -> dict[str, float]:
    """Rank correlation, cosine, and the relative error ||c v - F|| / ||F|| at the best scale c."""
    v, f = second_moment.double(), diagonal.double()
    product = v @ f
    cosine = product / (v.norm() * f.norm())
    return {"rank_correlation": float(spearmanr(v.numpy(), f.numpy()).statistic),
            "cosine": float(cosine), "error": float((1 - cosine**2).clamp_min(0).sqrt())}


def measure(seeds: list[int]) -> dict:
    """AdamW on the grokking task: at each point the agreement with both diagonals, one value a
    seed."""
    found: dict = {}
    for seed in seeds:
        run = built({"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 1.0}, seed)
        tokens, labels = (tensor[:EXAMPLES] for tensor in run.data.train.tensors)
        generator = torch.Generator().manual_seed(seed)
        for step in steps(run, POINTS[-1]):
            if step not in POINTS:
                continue
            moment = torch.cat([run.optimizer.state[p]["exp_avg_sq"].flatten()
                                for p in run.model.parameters()])
            diagonals = fisher_diagonals(run.model, tokens, labels, generator)
            for name, diagonal in diagonals.items():
                entry = found.setdefault(f"step {step}", {}).setdefault(name, {})
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


def render(found: dict) -> str:
    """The numbers as a table."""
    keys = ("rank_correlation", "cosine", "error")
    lines = [("AdamW at", *(f"{name}: {key.replace('_', ' ')}" for name in AGAINST
                            for key in keys))]
    for point, entry in found.items():
        lines.append((point, *(interval(mean(entry[name][key])) for name in AGAINST
                               for key in keys)))
    return (f"Over all parameters of the grokking model; the diagonals are of {EXAMPLES} training "
            "examples, each with one label drawn from the model (Fisher) or its own (empirical). "
            "Adam averages squares of gradients of whole batches: where the mean gradient "
            "dominates, its square is what Adam sees.\n\n" + markdown(lines))
