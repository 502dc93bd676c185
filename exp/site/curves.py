"""Curves of a paper's tables on the web page: each row's metric over gradient evaluations."""

from pathlib import Path

from exp.harness.task import FRACTION
from exp.report import web
from exp.report.canvas import styles
from exp.reproduce.figures import averaged
from exp.reproduce.papers import Paper
from exp.reproduce.plan import Table
from exp.reproduce.records import read_kept
from exp.reproduce.report import sections, select
from exp.reproduce.yardstick import Yardstick

POINTS = 100  # per curve; more cannot be distinguished
AXIS = "gradient_evaluations"
DASHES = {"-": "", "--": "6 3", ":": "1.5 2.5", "-.": "6 2 1.5 2"}


def paper_curves(paper: Paper, kept: Path) -> str:
    """Figures of all tables that have runs and no grid, side by side; "" if there is none."""
    figures = [table_curves(table, records) for table in paper.tables if not table.grid
               and (records := read_kept(kept / f"{table.name}.json"))["runs"]]
    return f'<div class="figures">\n{"".join(figures)}\n</div>' if figures else ""


def table_curves(table: Table, records: dict) -> str:
    """Curves of a table's runs at its largest scale: mean over seeds, band from the lowest to the
    highest seed."""
    scale, protocol = sections(table, records)[0]
    by, looks = Yardstick.of(table, protocol), styles(row.label for row in table.rows)
    lines = {}
    for row, group in select(records, scale, protocol).items():
        values = averaged(group, by, AXIS)
        every = max(1, len(values[0]) // POINTS)
        xs, mean, low, high = ((*part[:-1:every].tolist(), float(part[-1])) for part in values)
        band = (low, high) if len(group) > 1 else ((), ())
        look = looks[row]
        dashes = DASHES.get(look["linestyle"], "5 1 1 1 1 1")
        lines[look["label"]] = web.Line(look["color"], dashes, xs, mean, *band)
    seeds = max(len(group) for group in select(records, scale, protocol).values())
    return web.curves(
        table.name.replace(".", "-"), f"{table.title}, {scale} scale, {seeds} "
        + ("seeds" if seeds > 1 else "seed"), AXIS.replace("_", " "),
        f"{by.metric.label}, {by.metric.unit}", lines, log=by.metric.unit != FRACTION)
