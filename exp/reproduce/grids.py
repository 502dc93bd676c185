"""The page of a table with a grid: every configuration; per level of each factor an unpaired
comparison of rows (Welch's t) and a paired one (which row is first in a configuration); the effects
of factors with two levels (`factorial`)."""

from collections.abc import Iterable

from exp.report import statistics
from exp.report.tables import Lines, number
from exp.report.tables import table as markdown
from exp.reproduce.factorial import factorial
from exp.reproduce.measures import Comparison, Runs, by_configuration, first_share, shared
from exp.reproduce.plan import Table
from exp.reproduce.yardstick import Yardstick


def render_grid(table: Table, by: Yardstick, runs: dict[str, list[dict]]) -> list[str]:
    """Return the page's parts for one scale and protocol. runs: row label -> its runs."""
    keyed = {row: by_configuration(group) for row, group in runs.items()}
    base = keyed.pop(table.baseline, {})
    parts = [_factors(table)]
    for row, ours in keyed.items():
        parts += [f"{row} against {table.baseline}: {by.outcome}, over the configurations that "
                  f"both ran. In the means, a run that {by.missed}. *{row} first* is the share of "
                  "configurations in which its number is the lower one, of those without a tie.",
                  _levels(table, by, row, *shared(ours, base))]
    every = {table.baseline: base, **keyed}
    return [*parts, *factorial(table, by, every), _configurations(table, by, every)]


def _factors(table: Table) -> str:
    """Table of the settings of each level of each factor, for all rows and for single ones."""
    lines = [("factor", "level", "sets", *(row.label for row in table.rows))]
    for factor, levels in table.grid.items():
        for level, overrides in levels.items():
            lines.append((factor, level, _settings(overrides),
                          *(_settings(row.own.get(level, ())) for row in table.rows)))
    return markdown(_without_empty_columns(lines))


def _settings(overrides: Iterable[str]) -> str:
    return ", ".join(f"`{override}`" for override in overrides)


def _without_empty_columns(lines: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    kept = [column for column in range(len(lines[0])) if any(line[column] for line in lines[1:])]
    return [tuple(line[column] for column in kept) for line in lines]


def _levels(table: Table, by: Yardstick, row: str, ours: Runs, base: Runs) -> str:
    """Table with one line for all configurations and one per level."""
    done = "reached" if by.milestone else "finite"
    lines: Lines = [("", "configurations", f"{table.baseline}, mean", f"{row}, mean",
                     "difference", "t", "p", f"{done}, {table.baseline}", f"{done}, {row}",
                     f"{row} first, %")]
    names = ["all", *(level for levels in table.grid.values() for level in levels)]
    for name in names:
        mine, theirs = ({key: run for key, run in group.items() if name in ("all", *key)}
                        for group in (ours, base))
        if not mine:
            continue
        a, b = by.finite_results(theirs.values()), by.finite_results(mine.values())
        difference, t, p = statistics.welch(a, b)
        lines.append((name, len(mine), sum(a) / len(a), sum(b) / len(b),
                      difference, t, p, _reached(by, theirs), _reached(by, mine),
                      first_share(Comparison(by, mine, theirs)).estimate))
    return markdown(lines)


def _reached(by: Yardstick, runs: Runs) -> str:
    return f"{sum(by.result(run) is not None for run in runs.values())} of {len(runs)}"


def _configurations(table: Table, by: Yardstick, runs: dict[str, Runs]) -> str:
    """Table with one line per configuration: the results of all seeds, per row."""
    lines = [(*table.grid, *(row.label for row in table.rows))]
    grid = dict.fromkeys(cell.levels for cell in table.cells())
    for levels in grid:
        cells = [_results(by, levels, runs.get(row.label, {})) for row in table.rows]
        if any(cells):
            lines.append((*levels, *cells))
    complete = sum(all(line[len(table.grid):]) for line in lines[1:])
    return (f"The {by.outcome} of every seed; > marks one that {by.missed}. {complete} of "
            f"{len(grid)} configurations are complete.\n\n" + markdown(lines))


def _results(by: Yardstick, levels: tuple[str, ...], runs: Runs) -> str:
    """The results of a configuration's seeds, in their order, as the page explains them."""
    of_seeds = [runs[key] for key in sorted(runs) if key[1:] == levels]
    return ", ".join("> " * (by.result(run) is None) + number(value)
                     for run, value in zip(of_seeds, by.finite_results(of_seeds), strict=True))
