"""Does the shear force change more slowly than the gradient, and what does a stale one buy?"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from exp.grokking.train import evaluate
from exp.report.statistics import mean
from exp.report.tables import interval, markdown
from exp.theory.sharpness.perturbations import gradient_and_shear
from exp.theory.training import SMALL, batches, built, examples, steps

SAYS = "Sharpness (the shear force) changes far more slowly than the gradient"
SOURCE = "paper 3.3"
RULE = ("holds if the shear force's autocorrelation is above the gradient's at every lag, in every "
        "window of every task, on the training batches and on one batch taken again and again, "
        "mean over seeds; does not hold if it is above at none; else it holds partly.")
OPTIMIZER = {"name": "ars2_neo", "lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 1.0, "k": 1}
# Task -> the step before each window, its length, tables for `built`.
WINDOWS = {"grokking": ((40, 180), 60, {}), "cifar": ((20, 100), 40, SMALL["cifar"]),
           "wikitext2": ((20, 100), 40, SMALL["wikitext2"])}
LAGS = (1, 2, 5, 10, 20)
KINDS = ("gradient", "shear force")
PERIODS = (0, 1, 2, 5, 10, 20)  # k; 0 is Base
RUN_STEPS = 160


def autocorrelation(series: Tensor, lags: tuple[int, ...]) -> list[float]:
    """Mean cosine of two rows of `series` (steps, size) that are `lag` apart, of each lag."""
    unit = F.normalize(series, dim=1)
    return [float((unit[:-lag] * unit[lag:]).sum(1).mean()) for lag in lags]


def measure(seeds: list[int]) -> dict:
    """{"autocorrelation": {window: {batches: {kind: {lag: [value a seed]}}}},
    "runs": {k: {measure: [value a seed]}}}."""
    found: dict = {"autocorrelation": {}, "runs": {}}
    for seed in seeds:
        for task in WINDOWS:
            for window, series in windows(task, seed).items():
                for (which, kind), rows in series.items():
                    entry = found["autocorrelation"].setdefault(window, {}).setdefault(which, {})
                    for lag, value in zip(
                            LAGS, autocorrelation(torch.stack(rows), LAGS), strict=True):
                        entry.setdefault(kind, {}).setdefault(str(lag), []).append(value)
        for k in PERIODS:
            for key, value in short_run(k, seed).items():
                found["runs"].setdefault(str(k), {}).setdefault(key, []).append(value)
    return found


def windows(task: str, seed: int) -> dict[str, dict[tuple[str, str], list[Tensor]]]:
    """Window -> (batches, kind) -> the vectors of its steps, on the way of ARS2-Neo Sync."""
    starts, length, tables = WINDOWS[task]
    run = built(OPTIMIZER, seed, task, **tables)
    params = list(run.model.parameters())
    again = next(run.data.train.epoch(0))
    found: dict = {}
    for done, batch in enumerate(batches(run)):
        if done >= max(starts) + length:
            return found
        for before in starts:
            if before <= done < before + length:
                window = found.setdefault(f"{task}, steps {before + 1} to {before + length}", {})
                for which, seen in (("training batches", batch), ("one batch again", again)):
                    vectors = gradient_and_shear(run, seen, params)
                    for kind, vector in zip(KINDS, vectors, strict=True):
                        window.setdefault((which, kind), []).append(vector)
        run.optimizer.step(run.objective.on(batch))


def short_run(k: int, seed: int) -> dict[str, float]:
    """Losses over all training and held-out pairs, and gradient evaluations, at the end."""
    run = built({**OPTIMIZER, "k": k}, seed)
    for _ in steps(run, RUN_STEPS):
        pass
    ends = {"training loss": evaluate(run.objective, *examples(run))["eval_loss"],
            "held-out loss": evaluate(run.objective, *run.data.eval)["eval_loss"]}
    return {**ends, "evaluations": run.objective.gradient_evaluations}


def judge(found: dict) -> str:
    """The verdict of RULE."""
    above = [sum(entry["shear force"][lag]) > sum(entry["gradient"][lag])
             for window in found["autocorrelation"].values() for entry in window.values()
             for lag in entry["gradient"]]
    return "holds" if all(above) else "holds partly" if any(above) else "does not hold"


def figure(found: dict) -> str:
    """Autocorrelations at the middle lag on the training batches, over the windows."""
    lag, parts = LAGS[len(LAGS) // 2], []
    for kind in KINDS:
        values = [mean(by_batches["training batches"][kind][str(lag)]).value
                  for by_batches in found["autocorrelation"].values()]
        parts.append(f"{kind} {min(values):.2f} to {max(values):.2f}")
    return f"cosine {lag} steps apart: " + ", ".join(parts)


def render(found: dict) -> str:
    """Autocorrelations, then runs, as tables."""
    lines = [("mean cosine at lag", "", *map(str, LAGS))]
    for window, by_batches in found["autocorrelation"].items():
        for which, entry in by_batches.items():
            for kind in KINDS:
                lines.append((f"{window}, {which}", kind,
                              *(interval(mean(entry[kind][str(lag)])) for lag in LAGS)))
    keys = ("training loss", "held-out loss", "evaluations")
    runs = [("k", *keys)]
    for k, entry in found["runs"].items():
        runs.append((f"{k} (Base)" if k == "0" else k, *(interval(mean(entry[key]))
                                                         for key in keys)))
    return (
        "On the way of ARS2-Neo Sync (lr 0.001, rho 0.1 a tensor, decay 1): the grokking task as "
        "published, a ResNet-18 of width 4, a Qwen3 of one layer. The "
        "shear force at lag k is what Lazy injects k steps after it was taken. One batch again: "
        "only the weights change; on the training batches the sample changes too.\n\n"
        + markdown(lines) + f"\n\nWhat a stale shear force buys: {RUN_STEPS} steps of ARS2-Neo "
        "on the grokking task, with period k, alpha 0.1 (k = 1, Sync, takes the whole adversarial "
        "gradient and injects nothing).\n\n" + markdown(runs)
        + "\n\n![Autocorrelation over lag](slow_sharpness.png)")


def plot(found: dict, path: Path) -> None:
    """Autocorrelation over lag, a panel a window, dashed for the batch taken again."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(2, len(found["autocorrelation"]))
    rows = -(-len(found["autocorrelation"]) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(9, 3.2 * rows), sharey=True,
                                squeeze=False, layout="constrained")
    colors = dict(zip(KINDS, ("#8a8f98", "#1f5fbf"), strict=True))
    for panel in axes.flat[len(found["autocorrelation"]):]:
        panel.set_axis_off()
    for panel, (window, by_batches) in zip(axes.flat, found["autocorrelation"].items(),
                                           strict=False):
        for which, entry in by_batches.items():
            for kind in KINDS:
                values = [mean(entry[kind][str(lag)]).value for lag in LAGS]
                panel.plot(LAGS, values, marker="o", markersize=3.5, color=colors[kind],
                           linestyle="--" if "again" in which else "-", label=f"{kind}, {which}")
        panel.set(title=window, xlabel="lag (steps)", xscale="log", xticks=LAGS,
                  xticklabels=LAGS)
        panel.minorticks_off()
        panel.grid(color="#e3e5e8", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in axes[:, 0]:
        panel.set_ylabel("mean cosine")
    axes.flat[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
