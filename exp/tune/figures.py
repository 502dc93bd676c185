"""Tuning curves: the best result so far after each trial of a chain."""

import math
from pathlib import Path

import numpy as np

from exp.report.canvas import NEUTRAL, canvas, color, display_name
from exp.tune.suggest import winner
from exp.tune.terms import rung

COLUMNS = 5


def best_so_far(terms: dict, trials: list[dict]) -> list[float]:
    """Return the best result after each trial: gradient evaluations to the target, where a miss
    counts as the cap; in an annealed search the metric, or 1 - metric of an accuracy."""
    best = [winner(trials[:count]) for count in range(1, len(trials) + 1)]
    if terms["regime"] == "anneal":
        return [math.exp(-trial["grade"]) for trial in best]
    return [trial["cost"] or terms["cap"] for trial in best]


def draw_tuning(path: Path, board: dict) -> None:
    """Write a figure with one panel per arm: median and range over studies, and the baseline's
    median in gray."""
    terms = board["terms"]
    curves = {name: np.array([best_so_far(rung(terms, name), study["trials"])
                              for study in arm["studies"]]) for name, arm in board["arms"].items()}
    rows = -(-len(curves) // COLUMNS)
    ylabel = "evaluations to target" if terms["regime"] == "race" else "metric at the end"
    with canvas(path, rows=rows, columns=min(COLUMNS, len(curves)), panel=(2.6, 2.2), legend=False,
                sharex=True, sharey=True) as panels:
        for axes, (name, of_arm) in zip(panels.flat, curves.items(), strict=False):
            trials = np.arange(1, of_arm.shape[1] + 1)
            axes.fill_between(trials, of_arm.min(0), of_arm.max(0), color=color(name), alpha=0.2)
            if terms["baseline"] in curves:
                axes.plot(trials, np.median(curves[terms["baseline"]], 0), color=NEUTRAL,
                          linestyle="--")
            axes.plot(trials, np.median(of_arm, 0), color=color(name))
            axes.set(title=display_name(name), xlabel="trials", ylabel=ylabel, yscale="log")
