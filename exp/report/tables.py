"""Markdown text of numbers, intervals and tables, formatted alike on every page.

    page("# Title", "A paragraph.", table([("", "loss"), ("AdamW", [5.1, 5.3])]))

`table` formats a cell by its type: text with its bars escaped, a number with four digits, an
Estimate with its interval, a list of one value per seed as their mean with its interval, None as a
dash.
"""

import math
from collections.abc import Iterable, Sequence

from exp.report.statistics import Estimate, mean

Cell = str | float | Estimate | Sequence[float] | None
Lines = list[tuple[Cell, ...]]


def page(*parts: str) -> str:
    """Join headings, paragraphs and tables with an empty line between them; drop empty ones."""
    return "\n\n".join(part for part in parts if part) + "\n"


def older_code(marks: Iterable[str]) -> str:
    """Return a note that results come from older code. marks: such as "results: module 1 -> 2".
    Empty without a mark."""
    text = "; ".join(mark for mark in marks if mark)
    return f"Made by older code whose results differ (RECIPE numbers): {text}." if text else ""


def table(lines: Iterable[Sequence[Cell]]) -> str:
    """Return an aligned Markdown table of cells; the first line is the head."""
    return markdown([tuple(map(cell, line)) for line in lines])


def cell(value: Cell) -> str:
    """Return a cell of a table as text."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value.replace("|", "\\|")
    if isinstance(value, Estimate):
        return interval(value)
    return number(value) if isinstance(value, int | float) else interval(mean(value))


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return an aligned Markdown table of texts; the first line is the head."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = ["| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
            + " |" for line in lines]
    return "\n".join([rows[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|",
                      *rows[1:]])


def number(value: float) -> str:
    """Format with four significant digits; whole numbers and those from 1000 on as integers. nan is
    a dash, infinity "never"."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "never"
    return f"{value:.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def interval(estimate: Estimate, unit: str = "") -> str:
    """Format a value with its unit and, if it has one, its interval."""
    if math.isinf(estimate.value) and unit == "x":  # the slower side never reached the target
        return "∞ x" if math.isnan(estimate.low) else f"> {number(estimate.low)} x"
    value = number(estimate.value)
    if unit and math.isfinite(estimate.value):
        value += f" {unit}"
    if math.isnan(estimate.low) or math.isinf(estimate.low):
        return value
    return f"{value} [{number(estimate.low)}, {_end(estimate.high)}]"


def at_least(ratio: Estimate | None) -> str:
    """Format a ratio with its interval, or only its lower bound if the ratio is infinite (one side
    never reached the target)."""
    if ratio is None:
        return ""
    return f"> {number(ratio.low)}" if math.isinf(ratio.value) else interval(ratio)


def _end(value: float) -> str:
    return "∞" if math.isinf(value) else number(value)
