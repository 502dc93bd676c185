"""Which direction is sharp: the gradient's, the whitened one, ARS2's with |W|, or any?"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from exp.harness.build import Built
from exp.harness.objective import frozen_statistics
from exp.report.statistics import mean
from exp.report.tables import interval, markdown
from exp.theory.sharpness.perturbations import gradients, whitened
from exp.theory.training import built, steps
from optimizer.parts.sharpness import perturbation, perturbed

SAYS = "Whitening the perturbation finds what is truly sharp in the space of distributions"
SOURCE = "paper 3.2"
RULE = ("at the global length 0.1: holds if the whitened direction (the paper's g_nat) raises the "
        "loss more than the gradient's, per length and per square root of the KL divergence it "
        "causes, on every task at every point, mean over seeds; does not hold if it never does; "
        "else it holds partly.")
TASKS = {"grokking": (40, 200), "cifar": (10, 30), "wikitext2": (10, 30)}  # AdamW's steps
BATCH = {"grokking": 512, "cifar": 128, "wikitext2": 4}
ADAMW = {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 0.1}
LENGTHS = (0.01, 0.03, 0.1, 0.3)  # of the whole perturbation
DECIDES = 0.1
DIRECTIONS = ("gradient", "whitened", "whitened, |W|", "random")
NORMS = ("global", "tensor")
RANDOM = 2  # directions


def directions(run: Built, params: list[Tensor], gradient: list[Tensor],
               generator: torch.Generator) -> dict[str, list[tuple[list[Tensor], str]]]:
    """Name -> directions, one tensor a parameter, each with the `scale` of `perturbation`."""
    white = whitened(run.optimizer, params, gradient)
    draws = [([torch.randn(p.shape, generator=generator) for p in params], "none")
             for _ in range(RANDOM)]
    return {"gradient": [(gradient, "none")], "whitened": [(white, "none")],
            "whitened, |W|": [(white, "abs")], "random": draws}


def rise(before: Tensor, after: Tensor, targets: Tensor) -> tuple[float, float]:
    """By how much the mean loss rises (nats) from the log probabilities `before` to those `after`
    (predictions, classes), and the mean KL divergence of the predictions `after` from those
    before. Targets of -100 are left out."""
    kept = targets != -100
    before, after, targets = before[kept], after[kept], targets[kept]
    loss = F.nll_loss(after, targets) - F.nll_loss(before, targets)
    divergence = F.kl_div(after, before, log_target=True, reduction="batchmean")
    return float(loss), float(divergence)


def log_probabilities(run: Built, params: list[Tensor], offsets: list[Tensor]) -> Tensor:
    """Of the last batch at params + offsets, (predictions, classes) in float64: differences are
    small."""
    with torch.no_grad(), frozen_statistics(run.objective.norms), perturbed(params, offsets):
        return run.model(run.objective.batch[0]).flatten(0, -2).double().log_softmax(-1)


def measure(seeds: list[int]) -> dict:
    """"task, step n" -> norm -> direction -> length -> {"rise", "divergence"}: [value a seed]."""
    found: dict = {}
    for task, points in TASKS.items():
        for seed in seeds:
            run = built(ADAMW, seed, task, data={"batch_size": BATCH[task]})
            for step in steps(run, points[-1]):
                if step in points:
                    measure_at(found.setdefault(f"{task}, step {step}", {}), run, seed)
    return found


def measure_at(found: dict, run: Built, seed: int) -> None:
    """Add the rises at one point, on the batch of the last step."""
    batch = run.objective.batch
    params = [p for p in run.model.parameters() if p.requires_grad]
    with frozen_statistics(run.objective.norms):
        gradient = gradients(run, batch, params)
    generator = torch.Generator().manual_seed(seed)
    before = log_probabilities(run, params, [torch.zeros_like(p) for p in params])
    for name, drawn in directions(run, params, gradient, generator).items():
        for norm in NORMS:
            for length in LENGTHS:
                rho = length / (len(params) ** 0.5 if norm == "tensor" else 1.0)
                with torch.no_grad():
                    offsets = [perturbation(params, d, rho, norm, scale) for d, scale in drawn]
                values = [rise(before, log_probabilities(run, params, o), batch[1].flatten())
                          for o in offsets]
                entry = found.setdefault(norm, {}).setdefault(name, {}).setdefault(
                    str(length), {"rise": [], "divergence": []})
                for key, column in zip(entry, zip(*values, strict=True), strict=True):
                    entry[key].append(sum(column) / len(column))


def per_divergence(entry: dict) -> list[float]:
    """Rise over sqrt(2 KL) of each seed: for small steps g d / sqrt(d F d), whatever the length."""
    return [rise / max(2 * kl, 1e-30) ** 0.5
            for rise, kl in zip(entry["rise"], entry["divergence"], strict=True)]


def judge(found: dict) -> str:
    """The verdict of RULE."""
    wins = []
    for by_norm in found.values():
        ours, theirs = (by_norm["global"][name][str(DECIDES)] for name in ("whitened", "gradient"))
        wins += [sum(ours["rise"]) > sum(theirs["rise"]),
                 sum(per_divergence(ours)) > sum(per_divergence(theirs))]
    return "holds" if all(wins) else "holds partly" if any(wins) else "does not hold"


def figure(found: dict) -> str:
    """How often the whitened direction raises the loss more than the gradient does."""
    pairs = [[by_norm["global"][name][str(DECIDES)] for name in ("whitened", "gradient")]
             for by_norm in found.values()]
    rises = sum(sum(ours["rise"]) > sum(theirs["rise"]) for ours, theirs in pairs)
    shares = sum(sum(per_divergence(ours)) > sum(per_divergence(theirs)) for ours, theirs in pairs)
    return (f"whitened above the gradient at {rises} of {len(pairs)} points by length, at {shares} "
            "by divergence")


def render(found: dict) -> str:
    """Rises at the deciding length, then rises per root of the KL divergence."""
    head = ("at", *(f"{name}: {norm}".replace("|", "\\|") for norm in NORMS for name in DIRECTIONS))
    tables = []
    for values in (lambda entry: entry["rise"], per_divergence):
        tables.append(markdown([head, *(
            (point, *(interval(mean(values(by_norm[norm][name][str(DECIDES)])))
                      for norm in NORMS for name in DIRECTIONS))
            for point, by_norm in found.items())]))
    return (
        f"Rise of the loss (nats) of the last step's batch at distance {DECIDES} of AdamW's "
        f"weights (lr {ADAMW['lr']:g}): *global* one norm over all tensors, *tensor* the same "
        "length shared equally among them (ARS2 as released is *whitened, |W|: tensor*). "
        f"*Random*: mean over {RANDOM} Gaussian directions. Batch norms see the batch.\n\n"
        + tables[0] + "\n\nThe same, per square root of twice the KL divergence between the "
        "predictions before and after: what a unit of length in the space of distributions "
        "buys.\n\n" + tables[1] + "\n\n![Rise over length](whitened_perturbation.png)")


def plot(found: dict, path: Path) -> None:
    """Rise over length, a panel a point: lines are global norms, dashes norms a tensor."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = 2
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(9, 2.9 * rows), squeeze=False,
                                layout="constrained")
    for panel, (point, by_norm) in zip(axes.flat, found.items(), strict=False):
        for norm, style in zip(NORMS, ("-", "--"), strict=True):
            for number, name in enumerate(DIRECTIONS):
                values = [mean(entry["rise"]).value for entry in by_norm[norm][name].values()]
                panel.plot(LENGTHS, values, style, marker=".", color=f"C{number}",
                           label=f"{name}: {norm}")
        panel.set(title=point, xscale="log", xlabel="length")
        panel.set_yscale("symlog", linthresh=1e-4)
        panel.grid(color="#e3e5e8", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in axes[:, 0]:
        panel.set_ylabel("rise of the loss (nats)")
    axes.flat[0].legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)
