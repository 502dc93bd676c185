"""Do flatter end points generalise better? Curvature against the generalisation gap."""

import importlib
from pathlib import Path

from scipy.stats import spearmanr

from exp.harness.curvature import curvature
from exp.report.statistics import mean
from exp.report.tables import interval, markdown, number
from exp.theory.training import built, examples

SAYS = "Flat minima generalise better (minimum description length)"
SOURCE = "paper 3.1"
RULE = ("over the end points of all optimizers and seeds of a task, at equal training loss: holds "
        "if the Spearman rank correlation of top eigenvalue, trace and SAM sharpness each with the "
        "generalisation gap is at least 0.5 at p < 0.05 on every task; holds partly if one of them "
        "is on one task; else it does not hold.")
MEASURES = ("top_eigenvalue", "trace", "sam_sharpness")
REST = {"lr": 3e-3, "betas": [0.9, 0.98]}
ARS = {"name": "ars2_neo", "lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 0.1, "adamw": REST}
ADAMW = {"name": "adamw", "lr": 3e-3, "betas": [0.9, 0.98], "weight_decay": 0.1}
RULES = {
    "AdamW": ADAMW,
    "SAM-AdamW": {**ADAMW, "sam": {"rho": 0.05}},
    "Muon": {"name": "muon", "lr": 0.02, "weight_decay": 0.1, "adamw": REST},
    "ARS2-Neo Base": {**ARS, "k": 0},
    "ARS2-Neo Sync": {**ARS, "k": 1},
    "ARS2-Neo AGA": {**ARS, "k": 10, "adaptive_sync": True},
}
TASKS = {
    "grokking": {"data": {"p": 31, "fraction": 0.5, "batch_size": 128},
                 "model": {"d_model": 64, "d_head": 16, "d_mlp": 256}},
    "cifar": {"data": {"subset": 0.005, "batch_size": 50, "crop": 0, "flip": False},
              "model": {"width": 4}},
}
TARGET, MAX_EPOCHS = 0.1, 30  # training loss (nats) at which a run ends
EXAMPLES, HELD_OUT = 50, 500  # of curvature; of the held-out loss


def end_point(rule: str, task: str, seed: int) -> dict[str, float]:
    """Train to TARGET or for MAX_EPOCHS; losses, gap, epochs and curvature at the end."""
    run = built(RULES[rule], seed, task, **TASKS[task])
    evaluate = importlib.import_module(f"exp.{task}.train").evaluate
    trained_on = examples(run)
    for epoch in range(MAX_EPOCHS):
        for batch in run.data.train.epoch(epoch):
            run.optimizer.step(run.objective.on(batch))
        train = evaluate(run.objective, *trained_on)["eval_loss"]
        run.model.train()
        if train <= TARGET:
            break
    held_out = evaluate(run.objective, *(t[:HELD_OUT] for t in run.data.eval))["eval_loss"]
    run.model.train()
    batch = tuple(tensor[:EXAMPLES] for tensor in trained_on)
    params = [p for p in run.model.parameters() if p.requires_grad]
    return {"epochs": epoch + 1, "training loss": train, "gap": held_out - train,
            **curvature(run.model, batch, params, seed)}


def measure(seeds: list[int]) -> dict:
    """Task -> rule -> measure -> [value a seed]."""
    found: dict = {}
    for task in TASKS:
        for rule in RULES:
            entry = found.setdefault(task, {}).setdefault(rule, {})
            for seed in seeds:
                for key, value in end_point(rule, task, seed).items():
                    entry.setdefault(key, []).append(value)
    return found


def correlation(by_rule: dict, key: str, of: str = "gap") -> tuple[float, float]:
    """Spearman's rank correlation and its p value, over all rules and seeds of a task; zero with
    p = 1 where one of the two does not vary."""
    columns = [[value for entry in by_rule.values() for value in entry[name]]
               for name in (key, of)]
    if any(len(set(column)) == 1 for column in columns):
        return 0.0, 1.0
    test = spearmanr(*columns)
    return float(test.statistic), float(test.pvalue)


def judge(found: dict) -> str:
    """The verdict of RULE."""
    tests = [correlation(by_rule, key) for by_rule in found.values() for key in MEASURES]
    agree = [rank >= 0.5 and p < 0.05 for rank, p in tests]
    return "holds" if all(agree) else "holds partly" if any(agree) else "does not hold"


def figure(found: dict) -> str:
    """The rank correlations with the gap."""
    return "; ".join(
        f"{task}: " + ", ".join(f"{key.replace('_', ' ')} {correlation(by_rule, key)[0]:.2f}"
                                for key in MEASURES) for task, by_rule in found.items())


def render(found: dict) -> str:
    """The correlations, then the end points of each task."""
    lines = [("rank correlation with the gap", *(key.replace("_", " ") for key in MEASURES),
              "epochs", "training loss", "points")]
    for task, by_rule in found.items():
        cells = []
        for key in (*MEASURES, "epochs", "training loss"):
            rank, p = correlation(by_rule, key)
            cells.append(f"{rank:.2f} (p {p:.2g})")
        lines.append((task, *cells, str(sum(len(e["gap"]) for e in by_rule.values()))))
    parts = [
        f"Runs end after the first epoch with a training loss of at most {TARGET:g} nats, at the "
        f"latest after {MAX_EPOCHS}. Gap: held-out less training loss. Curvature of the training "
        f"loss of {EXAMPLES} examples. grokking: p = 31, half of the pairs, width 64; cifar: "
        "ResNet-18 of width 4 on 250 images without augmentation (a net with batch norms can "
        "rescale its weights, and its curvature with them). AdamW at 0.003, Muon 0.02, ARS2-Neo "
        "0.001, decay 0.1, nothing tuned. Points of one rule are not independent.",
        markdown(lines)]
    keys = ("epochs", "training loss", "gap", *MEASURES)
    for task, by_rule in found.items():
        lines = [(task, *(key.replace("_", " ") for key in keys))]
        lines += [(rule, *(interval(mean(entry[key])) for key in keys))
                  for rule, entry in by_rule.items()]
        late = sum(value > TARGET for entry in by_rule.values() for value in entry["training loss"])
        parts.append(markdown(lines) + (f"\n\n{number(late)} of these runs did not reach {TARGET:g}"
                                        "." if late else ""))
    return "\n\n".join([*parts, "![Gap over curvature](flatness.png)"])


def plot(found: dict, path: Path) -> None:
    """Gap over each measure, a row a task, a colour a rule."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(found), len(MEASURES), figsize=(11, 3 * len(found)),
                                squeeze=False, layout="constrained")
    for row, (task, by_rule) in zip(axes, found.items(), strict=True):
        for panel, key in zip(row, MEASURES, strict=True):
            for rule, entry in by_rule.items():
                panel.plot(entry[key], entry["gap"], "o", markersize=4, label=rule)
            panel.set(xlabel=key.replace("_", " "), ylabel="gap (nats)", title=task)
            panel.set_xscale("symlog", linthresh=0.01)
            panel.grid(color="#e3e5e8", linewidth=0.8)
            panel.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)
