"""The figure of a table: learning curves with bands, time to the threshold, claims against ours
(at mini scale, where the paper's numbers cannot be compared, the curves over seconds)."""

import math
import textwrap
from pathlib import Path

import numpy as np

from exp.report import statistics
from exp.reproduce.claims import Claim
from exp.reproduce.measures import (
    PERCENT,
    Yardstick,
    by_configuration,
    capped_epochs,
    estimate,
    first_share,
    watched,
)
from exp.reproduce.plan import Table
from exp.reproduce.report import UNITS, sections, select
from exp.reproduce.verdicts import deciding_scale

COLORS = ("#111827", "#e11d48", "#60a5fa", "#1d4ed8", "#0e7490", "#a3a3a3", "#f59e0b",
          "#92400e", "#a855f7", "#84cc16", "#15803d", "#ea580c", "#ec4899")
GRID = "#e3e5e8"
LABEL_WIDTH = 36


def draw(path: Path, table: Table, records: dict, claims: list[Claim]) -> None:
    """One row of panels for each scale and protocol that was run; a PNG at `path`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = sections(table, records)
    figure, axes = plt.subplots(len(shown), 3, figsize=(16, 4.6 * len(shown)), squeeze=False,
                                layout="constrained")
    own = [claim for claim in claims if claim.table == table.name]
    for line, (scale, protocol) in zip(axes, shown, strict=True):
        runs = select(records, scale, protocol)
        colors = {row.label: COLORS[number % len(COLORS)] for number, row in enumerate(table.rows)}
        by = Yardstick.of(table, protocol)
        if table.grid:
            _configurations(line[0], table, by, runs)
            _first(line[2], table, by, runs)
        else:
            _curves(line[0], runs, by.metric, "epochs", colors)
        if table.milestone:
            _survival(line[1], runs, by, colors)
        else:
            _curves(line[1], runs, by.metric, "gradient_evaluations", colors)
        if not table.grid and (
                scale == "mini" or not _claims(line[2], own, table, records, scale, protocol)):
            _curves(line[2], runs, by.metric, "seconds", colors)
        line[0].set_title(f"{scale} scale, {protocol} protocol", loc="left", fontsize=11)
        for panel in line:
            panel.spines[["top", "right"]].set_visible(False)
            panel.grid(color=GRID, linewidth=0.8)
            panel.set_axisbelow(True)
        handles, labels = line[1].get_legend_handles_labels()
        line[1].legend(handles, labels, frameon=False, fontsize=8, loc="center left",
                       bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(table.title, fontsize=13)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _curves(axes, runs: dict[str, list[dict]], metric: str, axis: str, colors: dict) -> None:
    """Mean over seeds with the band from the worst to the best seed."""
    percent = UNITS[metric] == "%"
    for row, group in runs.items():
        length = min(len(run["curve"][metric]) for run in group)
        every = np.array([[math.nan if value is None else value
                           for value in run["curve"][metric][:length]] for run in group])
        every = every * PERCENT if percent else every
        costs = np.arange(1, length + 1) if axis == "epochs" else np.mean(
            [run["curve"][axis][:length] for run in group], axis=0)
        axes.plot(costs, np.nanmean(every, axis=0), color=colors[row], linewidth=1.7, label=row)
        axes.fill_between(costs, np.nanmin(every, axis=0), np.nanmax(every, axis=0),
                          color=colors[row], alpha=0.13, linewidth=0)
    axes.set(xlabel=axis.replace("_", " "), ylabel="eval accuracy, %" if percent else "perplexity")
    if not percent:
        axes.set_yscale("log")


def _configurations(axes, table: Table, by: Yardstick, runs: dict[str, list[dict]]) -> None:
    """The epoch of the milestone in each configuration: the baseline's across, the others' up."""
    base = by_configuration(runs.get(table.baseline, ()))
    first = next(iter(table.grid.values()))
    ends = [1.0]
    for row, group in runs.items():
        ours = by_configuration(group)
        for number, level in enumerate(first if row != table.baseline else ()):
            shared = [key for key in ours if key in base and level in key]
            x, y = (capped_epochs(by, {key: group[key] for key in shared})
                    for group in (base, ours))
            axes.plot(x, y, "o", color=COLORS[number % len(COLORS)], label=level, alpha=0.8)
            ends += [*x, *y]
    axes.plot([1, max(ends)], [1, max(ends)], color=GRID, zorder=0)
    axes.set(xscale="log", yscale="log", xlabel=f"{table.baseline}, epochs to {by.milestone}",
             ylabel="others, epochs (not reached: last epoch)")
    axes.legend(frameon=False, fontsize=8)


def _first(axes, table: Table, by: Yardstick, runs: dict[str, list[dict]]) -> None:
    """The share of configurations in which each other row is first, level by level."""
    base = by_configuration(runs.get(table.baseline, ()))
    levels = ["all", *(level for levels in table.grid.values() for level in levels)]
    for row, group in runs.items():
        ours = by_configuration(group)
        for y, level in enumerate(levels if row != table.baseline else ()):
            chosen = {key: run for key, run in ours.items() if level in ("all", *key)}
            share = first_share(by, chosen, base)
            axes.plot([share.low, share.high], [y, y], color="#1f5fbf", linewidth=2, alpha=0.5)
            axes.plot(share.value, y, "o", color="#1f5fbf", markersize=5)
    axes.axvline(50, color="#c2410c", linewidth=1)
    axes.set_yticks(range(len(levels)), levels, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(-3, 103), xlabel=f"first to {by.milestone}, % of configurations")


def _survival(axes, runs: dict[str, list[dict]], by: Yardstick, colors: dict) -> None:
    """The share of runs that have got there, over epochs (one minus Kaplan-Meier)."""
    for row, group in runs.items():
        times, limits = [by.epoch(run) for run in group], watched(group)
        if all(time is None for time in times):
            axes.plot([0, max(limits)], [0, 0], color=colors[row], linewidth=1.7, label=row)
            continue
        curve = statistics.survival(times, limits)
        x = np.concatenate([[0], curve.quantiles, [max(limits)]])
        y = np.concatenate([[0], 1 - curve.probabilities, [1 - curve.probabilities[-1]]])
        axes.step(x, y, where="post", color=colors[row], linewidth=1.7, label=row)
    axes.set(xlabel="epochs", ylabel=f"share of runs that reached {by.milestone}",
             ylim=(-0.03, 1.03))


def _claims(axes, claims: list[Claim], table: Table, records: dict, scale: str, protocol: str
            ) -> bool:
    """Claimed numbers as crosses, ours as dots with intervals, each over the claimed one; whether
    there are any."""
    names, drawn = [], set()

    def label(text: str) -> str | None:
        """The label of the first of its kind, for the legend."""
        first = text not in drawn
        drawn.add(text)
        return text if first else None

    for claim in claims:
        deciding, _ = deciding_scale(claim, table, records)
        if not claim.log or deciding != scale:  # an order of rows is no number to plot
            continue
        ours = estimate(claim, table, records, scale, protocol)
        if ours is None:
            continue
        y = len(names)
        names.append(textwrap.fill(claim.says, LABEL_WIDTH))
        axes.plot(1, y, "x", color="#c2410c", markersize=7, label=label("claimed"))
        if math.isfinite(ours.value):
            low, high = (ours.value if not math.isfinite(end) else end
                         for end in (ours.low, ours.high))
            axes.plot([low / claim.value, high / claim.value], [y, y], color="#1f5fbf",
                      linewidth=2, alpha=0.5)
            axes.plot(ours.value / claim.value, y, "o", color="#1f5fbf", markersize=5,
                      label=label("ours"))
        else:
            axes.annotate("out of reach", (1.05, y), va="center", fontsize=7, color="#1f5fbf")
    if not names:
        return False
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("ours / claimed")
    axes.legend(frameon=False, fontsize=8)
    return True
