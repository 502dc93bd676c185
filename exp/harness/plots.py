"""curves.png: the learning curves of one run, drawn from its metrics.jsonl."""

import math
from collections.abc import Sequence
from pathlib import Path

from exp.harness.task import FRACTION, LOSS, Metric

TRAIN, EVAL, MARK = "#8a8f98", "#1f5fbf", "#c2410c"


def plot_curves(
    path: Path, lines: list[dict], metrics: Sequence[Metric], milestones: dict[str, int | None],
    title: str,
) -> None:
    """A panel for the loss and one for each metric, the primary one first and with the milestones
    as dashed lines; a PNG at `path`.

    lines: the objects of metrics.jsonl; null entries (not finite) leave a gap.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metrics = [LOSS, *sorted(metrics, key=lambda metric: not metric.primary)]
    figure, axes = plt.subplots(1, len(metrics), figsize=(5 * len(metrics), 3.8),
                                layout="constrained")
    epochs = [line["epoch"] for line in lines]
    for metric, panel in zip(metrics, axes, strict=True):
        _panel(panel, epochs, lines, metric)
    for name, epoch in milestones.items():
        if epoch is not None:
            axes[1].axvline(epoch, color=MARK, linestyle="--", linewidth=1)
            axes[1].annotate(f"{name} {epoch}", (epoch, 0.5), xycoords=("data", "axes fraction"),
                             rotation=90, ha="right", va="center", fontsize=8, color=MARK)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_diagnostics(path: Path, lines: list[dict]) -> None:
    """One panel for each instrument's measure, one line a parameter; nothing without instruments.

    lines: the objects of metrics.jsonl, their diagnostics named "instrument/parameter/.../measure".
    """
    keys = sorted({key for line in lines for key in line.get("diagnostics", {}) if "/" in key
                   and not key.endswith("/seconds")})
    panels: dict[str, list[str]] = {}
    for key in keys:
        instrument, *middle, measure = key.split("/")
        panels.setdefault(" ".join((instrument, *middle[1:], measure)), []).append(key)
    if not panels:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3 * rows), squeeze=False,
                                layout="constrained")
    epochs = [line["epoch"] for line in lines]
    for panel in axes.flat[len(panels):]:
        panel.axis("off")
    for (title, members), panel in zip(panels.items(), axes.flat, strict=False):
        for number, key in enumerate(members):
            values = [line.get("diagnostics", {}).get(key) for line in lines]
            numbers = [float("nan") if value is None else value for value in values]
            label = key.split("/")[1] if key.count("/") > 1 else None
            panel.plot(epochs, numbers, marker=".", linewidth=1.3, color=f"C{number % 10}",
                       label=label)
        panel.set_title(title, fontsize=9)
        panel.grid(color="#e3e5e8", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
        if title.endswith("condition"):
            panel.set_yscale("log")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7,
                      frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axes, epochs: list[int], lines: list[dict], metric: Metric) -> None:
    """The curves of a metric on training and evaluation data."""
    style = {"linewidth": 1.8, "marker": "o" if len(lines) <= 25 else "", "markersize": 3.5}
    unit = f" ({metric.unit})" if metric.unit not in ("", FRACTION) else ""
    axes.set(xlabel="epoch", ylabel=metric.label + unit)
    for key, label, color in ((metric.name.replace("eval_", "train_", 1), "train", TRAIN),
                              (metric.name, "evaluation", EVAL)):
        values = [math.nan if line.get(key) is None else line[key] for line in lines]
        if not all(map(math.isnan, values)):
            axes.plot(epochs, values, label=label, color=color, **style)
    if metric.unit == FRACTION:
        axes.set_ylim(-0.02, 1.02)
    elif all(value > 0 for curve in axes.lines for value in curve.get_ydata() if value == value):
        axes.set_yscale("log")
    axes.grid(color="#e3e5e8", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
