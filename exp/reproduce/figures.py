"""The figure of a table: learning curves with bands, time to the milestone, our numbers over the
claimed ones (at mini scale, where a paper's numbers are not comparable, curves over seconds)."""

import math
import textwrap
from pathlib import Path

import numpy as np

from exp.harness.task import FRACTION
from exp.report import statistics
from exp.report.canvas import ACCENT, NEUTRAL, OURS, canvas, styles
from exp.report.statistics import Estimate
from exp.reproduce.claims import Claim
from exp.reproduce.measures import Comparison, by_configuration, evidence, first_share
from exp.reproduce.plan import Table
from exp.reproduce.report import sections, select
from exp.reproduce.verdicts import deciding_scale
from exp.reproduce.yardstick import Yardstick, number_or_nan

LABEL_WIDTH = 76
WIDE = 6  # columns of the grid: room for one, two or three panels side by side
NAMES = 0.45  # share of the claims' panel for their names
HEIGHT = 0.22  # inches per claim


def draw(path: Path, table: Table, records: dict, claims: list[Claim]) -> None:
    """Write a PNG to `path` with panels for each scale and protocol that was run, and the claimed
    numbers below them."""
    shown = sections(table, records)
    looks = {row: {**look, "marker": ""}
             for row, look in styles(row.label for row in table.rows).items()}
    numbers = {place: _numbers(claims, table, records, *place) for place in shown}
    heights = [size for place in shown for size in (
        3.6, *([HEIGHT * len(numbers[place]) + 0.8] if numbers[place] else []))]
    with canvas(path, len(heights), WIDE, panel=(11.4 / WIDE, sum(heights) / len(heights)),
                title=table.title, height_ratios=heights) as panels:
        lines = iter(panels)
        for scale, protocol in shown:
            runs, by = select(records, scale, protocol), Yardstick.of(table, protocol)
            line = _spread(next(lines), 2 if numbers[scale, protocol] else 3)
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
            if numbers[scale, protocol]:
                _claims(_spread(next(lines), 1)[0], numbers[scale, protocol])
            elif not table.grid:
                _curves(line[2], runs, by, "seconds", looks)


def _spread(line: np.ndarray, count: int) -> list:
    """Spread the first `count` of a line's panels over its whole width and remove the others."""
    grid, share = line[0].get_gridspec(), len(line) // count
    row = line[0].get_subplotspec().rowspan.start
    for number, axes in enumerate(line[:count]):
        axes.set_subplotspec(grid[row, number * share:(number + 1) * share])
    for axes in line[count:]:
        axes.remove()
    return list(line[:count])


def _curves(axes, runs: dict[str, list[dict]], by: Yardstick, axis: str, looks: dict) -> None:
    """Draw the mean over seeds with a band from the lowest to the highest seed."""
    for row, group in runs.items():
        costs, mean, low, high = averaged(group, by, axis)
        axes.plot(costs, mean, **looks[row])
        axes.fill_between(costs, low, high, color=looks[row]["color"], alpha=0.13, linewidth=0)
    axes.set(xlabel=axis.replace("_", " "), ylabel=f"{by.metric.label}, {by.metric.unit}")
    axes.locator_params(axis="x", nbins=6)
    if by.metric.unit != FRACTION:
        axes.set_yscale("log")


def averaged(group: list[dict], by: Yardstick, axis: str) -> tuple[np.ndarray, ...]:
    """Return arrays (costs, mean, least, largest), per epoch that all runs have, of the metric over
    the runs of `group`. axis: of the costs, see `yardstick.spent`."""
    group = [run for run in group if by.curve(run)]  # not those that diverged in the first epoch
    length = min((len(by.curve(run)) for run in group), default=0)
    if not length:
        return (np.empty(0),) * 4
    every = by.scale * np.array([list(map(number_or_nan, by.curve(run)[:length]))
                                 for run in group])
    costs = np.arange(1, length + 1) if axis == "epochs" else np.mean(
        [run["curve"][axis][:length] for run in group], axis=0)
    return costs, np.nanmean(every, axis=0), np.nanmin(every, axis=0), np.nanmax(every, axis=0)


def _configurations(axes, table: Table, by: Yardstick, runs: dict[str, list[dict]]) -> None:
    """Draw the result per configuration: the baseline's as x, the others' as y."""
    base = by_configuration(runs.get(table.baseline, ()))
    first = next(iter(table.grid.values()))
    for row, group in runs.items():
        ours = by_configuration(group)
        for number, level in enumerate(first if row != table.baseline else ()):
            shared = [key for key in ours if key in base and level in key]
            x, y = (by.finite_results(rows[key] for key in shared) for rows in (base, ours))
            axes.plot(x, y, "o", color=f"C{number}", label=level, alpha=0.8)
    axes.axline((10, 10), (100, 100), color=NEUTRAL, linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel=f"{table.baseline}, {by.outcome}",
             ylabel=f"others, {by.outcome}")


def _first(axes, table: Table, by: Yardstick, runs: dict[str, list[dict]]) -> None:
    """Draw, per level, the share of configurations in which each other row is first."""
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
    axes.set(xlim=(-3, 103), xlabel=f"better by {by.outcome}, % of configurations")


def _survival(axes, runs: dict[str, list[dict]], by: Yardstick, looks: dict) -> None:
    """Draw the share of runs that have reached the milestone, over epochs (1 - Kaplan-Meier)."""
    for row, group in runs.items():
        times, limits = by.times(group)
        if all(time is None for time in times):
            axes.plot([0, max(limits)], [0, 0], **looks[row])
            continue
        curve = statistics.survival(times, limits)
        x = np.concatenate([[0], curve.quantiles, [max(limits)]])
        y = np.concatenate([[0], 1 - curve.probabilities, [1 - curve.probabilities[-1]]])
        axes.step(x, y, where="post", **looks[row])
    axes.set(xlabel="epochs", ylabel=f"share that reached {by.milestone}",
             ylim=(-0.03, 1.03))


def _numbers(claims: list[Claim], table: Table, records: dict, scale: str, protocol: str
             ) -> list[tuple[Claim, Estimate]]:
    """Claimed numbers that this scale decides, with our estimates; none at mini scale or for a
    grid."""
    if scale != "full" or table.grid:
        return []
    numbers = [claim for claim in claims  # an order of rows is no number to plot
               if claim.log and deciding_scale(claim, table, records)[0] == "full"]
    return [(claim, ours.estimate) for claim in numbers
            if (ours := evidence(claim, table, records, "full", protocol)) is not None]


def _claims(axes, pairs: list[tuple[Claim, Estimate]]) -> None:
    """Draw claimed numbers as crosses, ours as dots with intervals, in units of the claimed ones.
    """
    for y, (claim, ours) in enumerate(pairs):
        axes.plot(1, y, "x", color=ACCENT, markersize=7, label="claimed")
        if not math.isfinite(ours.value):
            axes.annotate("out of reach", (1, y), (8, 0), textcoords="offset points", va="center",
                          fontsize=8, color=OURS)
            continue
        ends = [end if math.isfinite(end) else ours.value for end in (ours.low, ours.high)]
        axes.plot([end / claim.value for end in ends], [y, y], color=OURS, linewidth=2, alpha=0.5)
        axes.plot(ours.value / claim.value, y, "o", color=OURS, markersize=5, label="ours")
    low, high = axes.get_xlim()
    for y, (claim, _) in enumerate(pairs):  # beside the marks, inside the panel
        name = textwrap.shorten(claim.says, LABEL_WIDTH, placeholder=" ...")
        axes.text(0.01, y, name, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.set_xticks([tick for tick in axes.get_xticks() if low <= tick <= high])
    axes.set_xlim(low - NAMES / (1 - NAMES) * (high - low), high)
    axes.set_yticks(range(len(pairs)), [])
    axes.invert_yaxis()
    axes.set_xlabel("ours / claimed")
