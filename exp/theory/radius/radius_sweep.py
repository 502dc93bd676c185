"""Does a trust region make RMSuon less sensitive to the learning rate, faster or more stable?"""

import math
from itertools import islice
from pathlib import Path

import torch

from exp.report.statistics import mean
from exp.report.tables import interval, markdown, number
from exp.theory.training import batches, built

SAYS = "A trust region along the orthogonal direction makes the learning rate matter less"
SOURCE = "paper 003 (the spike on TR-Muon)"
RULE = ("at equal gradient evaluations, over two decades of the learning rate: holds if on every "
        "task one rule of TR-Muon has more rates within 10 % of its own lowest loss than RMSuon "
        "has, and a lowest loss at most 5 % above RMSuon's, mean over seeds; holds partly if that "
        "is so on at least one task; else it does not hold.")
RATES = tuple(10 ** (step / 2) for step in range(-2, 3))  # times the rate of RULES
NEAR, WORSE = 1.10, 1.05
TR = {"name": "tr_muon", "lr": 1e-3}
GAIN = {"control": "gain", "radius_range": (0.1, 4.0)}  # as the spike's proposal has it
LINE = {"control": "line", "radius_range": (0.01, 100.0)}  # the whole sweep, and more, in reach
RULES = {
    "AdamW": {"name": "adamw", "lr": 3e-3}, "Muon": {"name": "muon", "lr": 0.02},
    "K-FAC": {"name": "kfac", "lr": 1e-2},
    "K-FAC, damping 1e-5": {"name": "kfac", "lr": 1e-2, "damping": 1e-5},
    "K-FAC, damping 1e-5, no KL clip": {"name": "kfac", "lr": 1e-2, "damping": 1e-5,
                                        "kl_clip": math.inf},
    "RMSuon": {"name": "rmsuon", "lr": 1e-3},
    "TR-Muon ratio": {**TR, **GAIN, "rule": "ratio"},
    "TR-Muon ratio, accept 0.1": {**TR, **GAIN, "rule": "ratio", "accept": 0.1},
    "TR-Muon secant": {**TR, **GAIN, "rule": "secant"},
    "TR-Muon curvature, line": {**TR, "rule": "curvature", **LINE},
    "TR-Muon slope": {**TR, **GAIN, "rule": "slope", "interval": 1},
    "TR-Muon slope, line": {**TR, "rule": "slope", "interval": 1, **LINE},
}
DEFAULT = "TR-Muon curvature, line"
COLORS = {"AdamW": "#c2410c", "Muon": "#15803d", "K-FAC": "#a16207",
          "K-FAC, damping 1e-5": "#d6a94a", "K-FAC, damping 1e-5, no KL clip": "#f3d38a",
          "RMSuon": "#111827"}
TASKS = {
    "grokking": {"data": {"p": 31, "fraction": 0.5, "batch_size": 128},
                 "model": {"d_model": 64, "d_head": 16, "d_mlp": 256}},
    "cifar": {"data": {"subset": 0.02, "batch_size": 32}, "model": {"width": 4}},
    "wikitext2": {"data": {"subset": 0.05, "batch_size": 4},
                  "model": {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2,
                            "head_dim": 32, "intermediate_size": 192}},
}
EVALUATIONS, EXAMPLES = 100, 128
UNSEEN = 10**6  # an epoch whose order and augmentation no run has met


def final_loss(task: str, settings: dict, seed: int) -> float:
    """Mean training loss, nats, over batches of EXAMPLES examples in all (rows of text) once
    EVALUATIONS gradients are taken; infinite if it diverged."""
    run = built({**settings, "weight_decay": 0.0}, seed, task=task, **TASKS[task])
    for batch in batches(run):
        if run.objective.gradient_evaluations >= EVALUATIONS:
            break
        loss = run.optimizer.step(run.objective.on(batch))
        if not math.isfinite(float(loss)):
            return math.inf
    count = max(1, EXAMPLES // run.data.train.batch_size)
    with torch.no_grad():
        losses = [float(run.objective.loss_fn(run.model, *batch)[0])
                  for batch in islice(run.data.train.epoch(UNSEEN), count)]
    loss = sum(losses) / len(losses)
    return loss if math.isfinite(loss) else math.inf


def measure(seeds: list[int]) -> dict:
    """{task: {rule: {lr: [loss a seed]}}}."""
    found: dict = {}
    for task in TASKS:
        for rule, settings in RULES.items():
            if task == "grokking" and settings["name"] == "kfac":
                continue  # no modules there: all would be AdamW's
            for factor in RATES:
                lr = settings["lr"] * factor
                losses = [final_loss(task, {**settings, "lr": lr}, seed) for seed in seeds]
                # JSON knows no infinity.
                found.setdefault(task, {}).setdefault(rule, {})[f"{lr:.3g}"] = [
                    loss if math.isfinite(loss) else None for loss in losses]
    return found


def means(by_rate: dict[str, list]) -> dict[str, float]:
    """Mean loss of each rate; infinite if a seed diverged."""
    return {lr: math.inf if None in losses else sum(losses) / len(losses)
            for lr, losses in by_rate.items()}


def near_best(by_rate: dict[str, list]) -> int:
    """How many rates have a mean loss within NEAR of the lowest."""
    losses = means(by_rate).values()
    return sum(loss <= NEAR * min(losses) for loss in losses)


def judge(found: dict) -> str:
    """The verdict of RULE."""
    def helps(task: str, rule: str) -> bool:
        mine, plain = found[task][rule], found[task]["RMSuon"]
        lowest = (min(means(entry).values()) for entry in (mine, plain))
        return near_best(mine) > near_best(plain) and next(lowest) <= WORSE * next(lowest)

    helped = {rule: [helps(task, rule) for task in found]
              for rule in RULES if rule.startswith("TR-Muon")}
    if any(all(tasks) for tasks in helped.values()):
        return "holds"
    return "holds partly" if any(map(any, helped.values())) else "does not hold"


def figure(found: dict) -> str:
    """The range of losses over the rates, of RMSuon and of what became TR-Muon's default."""
    parts = []
    for task, rules in found.items():
        ends = (sorted(means(rules[rule]).values()) for rule in ("RMSuon", DEFAULT))
        parts.append(f"{task}: " + ", ".join(f"{number(low)} to {number(high)}"
                                             for low, *_, high in ends))
    return f"loss over two decades of lr, RMSuon and {DEFAULT}: " + "; ".join(parts)


def render(found: dict) -> str:
    """A table a task: losses over the grid, the lowest, the rates near it, diverged runs."""
    text = (f"Training loss (nats) after {EVALUATIONS} gradient evaluations, constant rate, no "
            "decay; TR-Muon pays for its looks out of them. Small versions of the three tasks; "
            "embeddings, head and vectors by AdamW at the same rate. The grokking transformer's "
            "matrices are no modules, which K-FAC needs.")
    for task, rules in found.items():
        lines = [(task, *(f"lr0 x {factor:.3g}" for factor in RATES), "lowest, of seeds",
                  f"rates within {NEAR - 1:.0%}", "diverged")]
        for rule, by_rate in rules.items():
            losses = means(by_rate)
            best = min(losses, key=losses.get)
            diverged = sum(loss is None for values in by_rate.values() for loss in values)
            lines.append((f"{rule}, lr0 {RULES[rule]['lr']:g}",
                          *(number(loss) if math.isfinite(loss) else "–"
                            for loss in losses.values()),
                          interval(mean(by_rate[best])) if math.isfinite(losses[best]) else "–",
                          str(near_best(by_rate)), str(diverged)))
        text += "\n\n" + markdown(lines)
    return text + "\n\n![Loss over learning rate](radius_sweep.png)"


def plot(found: dict, path: Path) -> None:
    """Loss over learning rate, a panel a task, TR-Muon in blues, RMSuon black."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(4.2 * len(found), 3.8), squeeze=False,
                                layout="constrained")
    blues = plt.get_cmap("Blues")
    ours = [rule for rule in RULES if rule not in COLORS]
    colors = COLORS | {rule: blues(0.4 + 0.6 * n / len(ours)) for n, rule in enumerate(ours)}
    for panel, (task, rules) in zip(axes.flat, found.items(), strict=True):
        for rule, by_rate in rules.items():
            losses = means(by_rate)
            panel.plot([float(lr) / RULES[rule]["lr"] for lr in losses], list(losses.values()),
                       "o-", color=colors[rule], label=rule, markersize=3)
        panel.set(title=task, xscale="log", yscale="log", xlabel="learning rate / lr0")
        panel.grid(color="#e3e5e8", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("training loss, nats")
    axes[0, -1].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
