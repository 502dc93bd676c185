"""The page of a table with a grid: every configuration; per level of each factor an unpaired
comparison of rows (Welch's t) and a paired one (which row is first in a configuration); the effects
of factors with two levels (`factorial`)."""

from collections.abc import Iterable

from exp.report import statistics
from exp.report.tables import Lines
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
        parts += [f"{row} against {table.baseline}: epochs to {table.milestone}, over the "
                  "configurations that both ran. In the mean epochs, a run that did not reach the "
                  f"milestone counts at its last epoch. *{row} first* is the share of "
                  "configurations in which it needs fewer epochs, among those in which at least "
                  "one of the two reached the milestone.",
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
    lines: Lines = [("", "configurations", f"{table.baseline}, mean epoch", f"{row}, mean epoch",
                     "difference", "t", "p", f"reached, {table.baseline}", f"reached, {row}",
                     f"{row} first, %")]
    names = ["all", *(level for levels in table.grid.values() for level in levels)]
    for name in names:
        mine, theirs = ({key: run for key, run in group.items() if name in ("all", *key)}
                        for group in (ours, base))
        if not mine:
            continue
        a, b = by.capped_epochs(theirs.values()), by.capped_epochs(mine.values())
        difference, t, p = statistics.welch(a, b)
        lines.append((name, len(mine), sum(a) / len(a), sum(b) / len(b),
                      difference, t, p, _reached(by, theirs), _reached(by, mine),
                      first_share(Comparison(by, mine, theirs)).estimate))
    return markdown(lines)


def _reached(by: Yardstick, runs: Runs) -> str:
    return f"{sum(by.epoch(run) is not None for run in runs.values())} of {len(runs)}"


def _configurations(table: Table, by: Yardstick, runs: dict[str, Runs]) -> str:
    """Table with one line per configuration: the epochs of all seeds, per row."""
    lines = [(*table.grid, *(f"{row.label}, epoch" for row in table.rows))]
    grid = dict.fromkeys(cell.levels for cell in table.cells())
    for levels in grid:
        cells = [_epochs(by, levels, runs.get(row.label, {})) for row in table.rows]
        if any(cells):
            lines.append((*levels, *cells))
    complete = sum(all(line[len(table.grid):]) for line in lines[1:])
    return (f"{complete} of {len(grid)} configurations are complete. > n: not reached by epoch "
            "n.\n\n"
            + markdown(lines))


def _epochs(by: Yardstick, levels: tuple[str, ...], runs: Runs) -> str:
    """Epochs to the milestone of a configuration's seeds, "> last" if it was not reached."""
    of_seeds = sorted(((key[0], run) for key, run in runs.items() if key[1:] == levels),
                      key=lambda item: item[0])
    return ", ".join(f"> {run['epochs']}" if (epoch := by.epoch(run)) is None else str(epoch)
                     for _, run in of_seeds)
