"""Numbers and tables as Markdown, the same on every page."""

import math

from exp.report.statistics import Estimate


def markdown(lines: list[tuple[str, ...]]) -> str:
    """Lines of cells, the first one the head, as an aligned Markdown table."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            + " |" for line in lines]
    return "\n".join([rows[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|",
                      *rows[1:]])


def between_marks(page: str, maker: str, text: str) -> str:
    """The page with `text` between "<!-- made by MAKER -->" and the "<!-- end -->" after it; as it
    is where it has no such place."""
    before, mark, after = page.partition(f"<!-- made by {maker} -->")
    _, end, rest = after.partition("<!-- end -->")
    return f"{before}{mark}\n{text}\n{end}{rest}" if end else page


def number(value: float) -> str:
    """Four significant digits, whole numbers as they are."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "never"
    return f"{value:.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def interval(ours: Estimate, unit: str = "") -> str:
    """A value with its unit and, where there is one, its interval."""
    if math.isinf(ours.value) and unit == "x":  # a ratio to what was never reached
        return f"> {number(ours.low)} x"
    value = number(ours.value)
    if unit and math.isfinite(ours.value):
        value += f" {unit}"
    if math.isnan(ours.low) or math.isinf(ours.low):
        return value
    return f"{value} [{number(ours.low)}, {_end(ours.high)}]"


def at_least(ratio: Estimate | None) -> str:
    """A ratio with its interval, or only its lower end where it is to what was never reached."""
    if ratio is None:
        return ""
    return f"> {number(ratio.low)}" if math.isinf(ratio.value) else interval(ratio)


def _end(value: float) -> str:
    return "∞" if math.isinf(value) else number(value)
