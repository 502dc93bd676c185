"""curves.png and diagnostics.png of one run, drawn from its metrics.jsonl."""

import math
from collections.abc import Sequence
from pathlib import Path

from exp.harness.task import FRACTION, LOSS, Metric
from exp.report.canvas import ACCENT, NEUTRAL, OURS, canvas, grid_of, styles


def plot_curves(
    path: Path, lines: list[dict], metrics: Sequence[Metric], milestones: dict[str, int | None],
    title: str,
) -> None:
    """Write a PNG to `path` with a panel for the loss and one per metric, the primary one first and
    with the milestones as dashed lines.

    lines: the objects of metrics.jsonl; null entries (not finite) leave a gap.
    """
    metrics = [LOSS, *sorted(metrics, key=lambda metric: not metric.primary)]
    with canvas(path, columns=len(metrics), panel=(5, 3.8), title=title) as (panels,):
        for metric, axes in zip(metrics, panels, strict=True):
            _panel(axes, lines, metric)
        for name, epoch in milestones.items():
            if epoch is not None:
                panels[1].axvline(epoch, color=ACCENT, linestyle="--", linewidth=1)
                panels[1].annotate(f"{name} {epoch}", (epoch, 0.5), color=ACCENT, fontsize=8,
                                   xycoords=("data", "axes fraction"), rotation=90, ha="right",
                                   va="center")


def plot_diagnostics(path: Path, lines: list[dict]) -> None:
    """Write a PNG to `path` with a panel per measure of an instrument and a line per parameter;
    write nothing if no instrument was on.

    lines: the objects of metrics.jsonl, their diagnostics named "instrument/parameter/.../measure".
    """
    panels: dict[str, dict[str, str]] = {}  # title -> parameter -> key
    for key in sorted({key for line in lines for key in line.get("diagnostics", {})}):
        instrument, *middle = key.split("/")
        measure = middle.pop() if middle else "seconds"  # without a slash: the optimizer's own
        if measure != "seconds":
            title = " ".join((instrument, *middle[1:], measure))
            panels.setdefault(title, {})[middle[0] if middle else "all"] = key
    if not panels:
        return
    style = styles(dict.fromkeys(name for keys in panels.values() for name in keys))
    epochs = [line["epoch"] for line in lines]
    with canvas(path, *grid_of(len(panels), 4), panel=(4.2, 3.2)) as grid:
        for axes, (title, keys) in zip(grid.flat, panels.items(), strict=False):
            for name, key in keys.items():
                axes.plot(epochs, _values([line.get("diagnostics", {}) for line in lines], key),
                          **style[name])
            axes.set(title=title, xlabel="epoch", ylabel=title.split()[-1],
                     yscale="log" if title.endswith("condition") else "linear")


def _panel(axes, lines: list[dict], metric: Metric) -> None:
    """Draw the curves of a metric on training and evaluation data."""
    style = {"linewidth": 1.8, "marker": "o" if len(lines) <= 25 else "", "markersize": 3.5}
    unit = f" ({metric.unit})" if metric.unit not in ("", FRACTION) else ""
    axes.set(xlabel="epoch", ylabel=metric.label + unit)
    for key, label, color in ((metric.name.replace("eval_", "train_", 1), "train", NEUTRAL),
                              (metric.name, "evaluation", OURS)):
        values = _values(lines, key)
        if not all(map(math.isnan, values)):
            axes.plot([line["epoch"] for line in lines], values, label=label, color=color, **style)
    if metric.unit == FRACTION:
        axes.set_ylim(-0.02, 1.02)
    elif all(value > 0 for curve in axes.lines for value in curve.get_ydata() if value == value):
        axes.set_yscale("log")


def _values(lines: list[dict], key: str) -> list[float]:
    """The numbers under a key, NaN for null or a missing key."""
    return [math.nan if line.get(key) is None else line[key] for line in lines]
