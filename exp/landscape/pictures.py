"""Trajectories over contours: a picture a function, and an animation."""

import math
from pathlib import Path

import numpy as np
import torch

from exp.landscape.functions import DOUBLE, Function
from exp.landscape.paths import Walk

GRID = 240
LEVELS = 18
FRAMES, FRAME_MS = 40, 80
COLORS = ("#111827", "#1f5fbf", "#c2410c", "#15803d", "#7c3aed", "#be185d", "#0e7490", "#b45309",
          "#4d7c0f", "#9f1239")


def draw(path: Path, function: Function, panels: dict[str, list[Walk]]) -> None:
    """A PNG: one panel a title, its walks over the contours, the end of each in the legend."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(panels), figsize=(8 * len(panels), 6.6), squeeze=False,
                                layout="constrained")
    for panel, (title, walks) in zip(axes[0], panels.items(), strict=True):
        _contours(panel, function)
        for walk, color in zip(walks, _colors(len(walks)), strict=True):
            points = _inside(walk, function)
            panel.plot(*points.T, color=color, linewidth=1.5, marker=".", markersize=3,
                       label=f"{walk.optimizer}, lr {walk.lr:.2g}: {_value(walk.final)}")
            panel.plot(*points[-1], "o", color=color, markersize=6, markeredgecolor="white")
        panel.set_title(title, fontsize=12)
        panel.legend(fontsize=8, loc="upper left", framealpha=0.9)
    figure.suptitle(function.note, fontsize=10, wrap=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def animate(path: Path, function: Function, walks: list[Walk]) -> None:
    """A GIF of the walks, at most FRAMES frames."""
    plt = _pyplot()
    from matplotlib.animation import FuncAnimation, PillowWriter

    figure, axes = plt.subplots(figsize=(6.4, 5.2), layout="constrained")
    _contours(axes, function)
    traces = [_inside(walk, function) for walk in walks]
    lines = [axes.plot([], [], color=color, linewidth=1.6, label=walk.optimizer)[0]
             for walk, color in zip(walks, _colors(len(walks)), strict=True)]
    heads = [axes.plot([], [], "o", color=line.get_color(), markeredgecolor="white")[0]
             for line in lines]
    axes.legend(fontsize=7, loc="upper left")
    length = max(map(len, traces))
    # Dense at first, where the walks differ most.
    stops = np.unique(np.geomspace(1, length, FRAMES).astype(int))

    def frame(stop: int) -> list:
        for line, head, trace in zip(lines, heads, traces, strict=True):
            shown = trace[:stop]
            line.set_data(*shown.T)
            head.set_data(*shown[-1:].T)
        axes.set_title(f"step {stop - 1}", fontsize=10)
        return [*lines, *heads]

    FuncAnimation(figure, frame, frames=stops).save(path, PillowWriter(1000 // FRAME_MS), dpi=64)
    plt.close(figure)


def _contours(axes, function: Function) -> None:
    left, right, bottom, top = function.box
    x, y = np.meshgrid(np.linspace(left, right, GRID), np.linspace(bottom, top, GRID))
    weights = function.point(torch.tensor(x, dtype=DOUBLE), torch.tensor(y, dtype=DOUBLE))
    values = function.value(weights).numpy()
    lowest = max(values.min(), 1e-3 * np.median(values))
    levels = np.geomspace(lowest, values.max(), LEVELS)
    axes.contourf(x, y, np.log(np.maximum(values, lowest)), LEVELS, cmap="Blues_r", alpha=0.75)
    axes.contour(x, y, values, levels, colors="white", linewidths=0.5, alpha=0.7)
    axes.plot(*zip(*function.minima, strict=True), "*", color="#facc15", markersize=15,
              markeredgecolor="#713f12", zorder=5)
    start = function.coordinates(function.start)
    axes.plot(*start.tolist(), "s", color="white", markeredgecolor="black", zorder=5)
    axes.set(xlim=(left, right), ylim=(bottom, top))


def _inside(walk: Walk, function: Function) -> np.ndarray:
    """The points of a walk as far as they can be drawn, (points, 2)."""
    left, right, bottom, top = function.box
    reach = 10 * max(right - left, top - bottom)
    points = [point for point in walk.points if all(math.isfinite(c) and abs(c) < reach
                                                    for c in point)]
    return np.array(points)


def _colors(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]


def _value(value: float) -> str:
    return f"{value:.1e}" if math.isfinite(value) else "diverged"


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
