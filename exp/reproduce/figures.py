"""The figure of a table: learning curves with bands, time to the milestone, claims against ours
(at mini scale, where a paper's numbers cannot be compared, the curves over seconds)."""

import math
import textwrap
from pathlib import Path

import numpy as np

from exp.harness.task import FRACTION
from exp.report import statistics
from exp.report.canvas import ACCENT, NEUTRAL, OURS, canvas, styles
from exp.reproduce.claims import Claim
from exp.reproduce.measures import Comparison, by_configuration, evidence, first_share
from exp.reproduce.plan import Table
from exp.reproduce.report import sections, select
from exp.reproduce.verdicts import deciding_scale
from exp.reproduce.yardstick import Yardstick, number_or_nan

LABEL_WIDTH = 48


def draw(path: Path, table: Table, records: dict, claims: list[Claim]) -> None:
    """One row of panels for each scale and protocol that was run; a PNG at `path`."""
    shown = sections(table, records)
    looks = {row: {**look, "marker": ""}
             for row, look in styles(row.label for row in table.rows).items()}
    with canvas(path, len(shown), 3, panel=(5.3, 4.2), title=table.title) as panels:
        for line, (scale, protocol) in zip(panels, shown, strict=True):
            runs, by = select(records, scale, protocol), Yardstick.of(table, protocol)
            line[0].set_title(f"{scale} scale, {protocol} protocol", loc="left", fontsize=10)
            if table.grid:
                _configurations(line[0], table, by, runs)
                _first(line[2], table, by, runs)
            else:
                _curves(line[0], runs, by, "epochs", looks)
            if table.milestone:
                _survival(line[1], runs, by, looks)
            else:
                _curves(line[1], runs, by, "gradient_evaluations", looks)
            if not table.grid and (
                    scale == "mini" or not _claims(line[2], claims, table, records, protocol)):
                _curves(line[2], runs, by, "seconds", looks)


def _curves(axes, runs: dict[str, list[dict]], by: Yardstick, axis: str, looks: dict) -> None:
    """Mean over seeds with the band from the worst to the best seed."""
    for row, group in runs.items():
        costs, mean, low, high = averaged(group, by, axis)
        axes.plot(costs, mean, **looks[row])
        axes.fill_between(costs, low, high, color=looks[row]["color"], alpha=0.13, linewidth=0)
    axes.set(xlabel=axis.replace("_", " "), ylabel=f"{by.metric.label}, {by.metric.unit}")
    if by.metric.unit != FRACTION:
        axes.set_yscale("log")


def averaged(group: list[dict], by: Yardstick, axis: str) -> tuple[np.ndarray, ...]:
    """(costs, mean, least, largest) of the metric over seeds, after each epoch that all of them
    have; axis: see `yardstick.spent`."""
    length = min(len(by.curve(run)) for run in group)
    every = by.scale * np.array([list(map(number_or_nan, by.curve(run)[:length]))
                                 for run in group])
    costs = np.arange(1, length + 1) if axis == "epochs" else np.mean(
        [run["curve"][axis][:length] for run in group], axis=0)
    return costs, np.nanmean(every, axis=0), np.nanmin(every, axis=0), np.nanmax(every, axis=0)


def _configurations(axes, table: Table, by: Yardstick, runs: dict[str, list[dict]]) -> None:
    """The epoch of the milestone in each configuration: the baseline's across, the others' up."""
    base = by_configuration(runs.get(table.baseline, ()))
    first = next(iter(table.grid.values()))
    for row, group in runs.items():
        ours = by_configuration(group)
        for number, level in enumerate(first if row != table.baseline else ()):
            shared = [key for key in ours if key in base and level in key]
            x, y = (by.capped_epochs(rows[key] for key in shared) for rows in (base, ours))
            axes.plot(x, y, "o", color=f"C{number}", label=level, alpha=0.8)
    axes.axline((10, 10), (100, 100), color=NEUTRAL, linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel=f"{table.baseline}, epochs to {by.milestone}",
             ylabel="others, epochs (not reached: last epoch)")


def _first(axes, table: Table, by: Yardstick, runs: dict[str, list[dict]]) -> None:
    """The share of configurations in which each other row is first, level by level."""
    base = by_configuration(runs.get(table.baseline, ()))
    levels = ["all", *(level for levels in table.grid.values() for level in levels)]
    for row, group in runs.items():
        ours = by_configuration(group)
        for y, level in enumerate(levels if row != table.baseline else ()):
            chosen = {key: run for key, run in ours.items() if level in ("all", *key)}
            share = first_share(Comparison(by, chosen, base)).estimate
            axes.plot([share.low, share.high], [y, y], color=OURS, linewidth=2, alpha=0.5)
            axes.plot(share.value, y, "o", color=OURS, markersize=5)
    axes.axvline(50, color=NEUTRAL, linewidth=1)
    axes.set_yticks(range(len(levels)), levels, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(-3, 103), xlabel=f"first to {by.milestone}, % of configurations")


def _survival(axes, runs: dict[str, list[dict]], by: Yardstick, looks: dict) -> None:
    """The share of runs that have got there, over epochs (one minus Kaplan-Meier)."""
    for row, group in runs.items():
        times, limits = by.times(group)
        if all(time is None for time in times):
            axes.plot([0, max(limits)], [0, 0], **looks[row])
            continue
        curve = statistics.survival(times, limits)
        x = np.concatenate([[0], curve.quantiles, [max(limits)]])
        y = np.concatenate([[0], 1 - curve.probabilities, [1 - curve.probabilities[-1]]])
        axes.step(x, y, where="post", **looks[row])
    axes.set(xlabel="epochs", ylabel=f"share of runs that reached {by.milestone}",
             ylim=(-0.03, 1.03))


def _claims(axes, claims: list[Claim], table: Table, records: dict, protocol: str) -> bool:
    """Claimed numbers as crosses, ours at full scale as dots with intervals, each over the claimed
    one; whether there are any."""
    numbers = [claim for claim in claims  # an order of rows is no number to plot
               if claim.log and deciding_scale(claim, table, records)[0] == "full"]
    pairs = [(claim, found.estimate) for claim in numbers
             if (found := evidence(claim, table, records, "full", protocol)) is not None]
    for y, (claim, ours) in enumerate(pairs):
        axes.plot(1, y, "x", color=ACCENT, markersize=7, label="claimed")
        if not math.isfinite(ours.value):
            axes.annotate("out of reach", (1.05, y), va="center", fontsize=7, color=OURS)
            continue
        ends = [end if math.isfinite(end) else ours.value for end in (ours.low, ours.high)]
        axes.plot([end / claim.value for end in ends], [y, y], color=OURS, linewidth=2, alpha=0.5)
        axes.plot(ours.value / claim.value, y, "o", color=OURS, markersize=5, label="ours")
    if pairs:
        names = [textwrap.fill(claim.says, LABEL_WIDTH) for claim, _ in pairs]
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel("ours / claimed")
    return bool(pairs)
