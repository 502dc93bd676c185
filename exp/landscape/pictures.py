"""Figures of trajectories over contours, one PNG and one GIF per function."""

import textwrap
from pathlib import Path

import numpy as np
import torch

from exp.landscape.functions import DOUBLE, Function
from exp.report.canvas import blank, canvas, color, display_name

GRID = 240
LEVELS = 18
FRAMES, FRAME_MS = 40, 80


def draw(path: Path, function: Function, panels: dict[str, list[dict]]) -> None:
    """Draw a PNG with one panel per title: its trajectories over the contours of the function, with
    each final value in the legend."""
    title = textwrap.fill(function.note, 90)
    with canvas(path, columns=len(panels), panel=(5.6, 6.2), title=title) as (row,):
        for axes, (name, walks) in zip(row, panels.items(), strict=True):
            _contours(axes, function)
            for walk in walks:
                points, hue = _inside(walk, function), color(walk["optimizer"])
                end = "diverged" if walk["final"] is None else f"{walk['final']:.1e}"
                axes.plot(*points.T, color=hue, linewidth=1.5, marker=".", markersize=3,
                          label=f"{display_name(walk['optimizer'])}, lr {walk['lr']:.2g}: {end}")
                axes.plot(*points[-1], "o", color=hue, markersize=6, markeredgecolor="white")
            axes.set_title(name, fontsize=11)
            axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2,
                        frameon=False)


def animate(path: Path, function: Function, walks: list[dict]) -> None:
    """Draw a GIF of the trajectories with at most FRAMES frames."""
    figure, ((axes,),) = blank(1, 1, (6.4, 5.2))
    from matplotlib.animation import FuncAnimation, PillowWriter

    _contours(axes, function)
    traces = [_inside(walk, function) for walk in walks]
    lines = [axes.plot([], [], color=color(walk["optimizer"]), linewidth=1.6,
                       label=display_name(walk["optimizer"]))[0] for walk in walks]
    heads = [axes.plot([], [], "o", color=line.get_color(), markeredgecolor="white")[0]
             for line in lines]
    axes.legend(fontsize=7, loc="upper left")
    # More frames for early steps, where the trajectories differ most.
    stops = np.unique(np.geomspace(1, max(map(len, traces)), FRAMES).astype(int))

    def frame(stop: int) -> list:
        for line, head, trace in zip(lines, heads, traces, strict=True):
            line.set_data(*trace[:stop].T)
            head.set_data(*trace[:stop][-1:].T)
        axes.set_title(f"step {stop - 1}", fontsize=10)
        return [*lines, *heads]

    FuncAnimation(figure, frame, frames=stops).save(path, PillowWriter(1000 // FRAME_MS), dpi=64)


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
    axes.set(xlim=(left, right), ylim=(bottom, top), xlabel="x", ylabel="y")


def _inside(walk: dict, function: Function) -> np.ndarray:
    """Return the points of a trajectory that are finite and near the box, (points, 2)."""
    left, right, bottom, top = function.box
    reach = 10 * max(right - left, top - bottom)
    return np.array([point for point in walk["points"]
                     if all(c is not None and abs(c) < reach for c in point)])
