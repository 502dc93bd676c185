"""The published leaderboard as one sortable HTML file; each row unfolds curves and config."""

import html
import math
import re
from pathlib import Path

from exp.report.tables import at_least
from exp.tune.published.leaderboard import (
    BASELINE,
    COST,
    LEGEND,
    bounded,
    evaluations,
    number,
    pace_line,
    ranges_line,
    rows_of,
    shown,
    terms_line,
    took,
)

HEAD = ("optimizer", "fresh: evaluations", "reached", "epochs", "ms an evaluation", "seconds",
        f"times cheaper than {BASELINE}", "tuned: evaluations", "near best", "defaults")
PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")


def render_html(board: dict) -> str:
    """leaderboard.html: sortable tables, behind each row its curves and its config; one file."""
    sections = []
    for name, task in board["tasks"].items():
        body = "".join(_html_row(row, task["terms"]) for row in rows_of(task))
        head = "".join(f"<th>{html.escape(title)}</th>" for title in HEAD)
        sections.append(f"<h2>{html.escape(name)}</h2><p>{html.escape(terms_line(task))}</p>"
                        f"<table><thead><tr>{head}</tr></thead>{body}</table>"
                        f"<p>{html.escape(pace_line(task))}</p>"
                        f"<p>{html.escape(ranges_line(task))}</p>")
    legend = re.sub(r"\*(.+?)\*", r"<em>\1</em>", html.escape(LEGEND))
    return PAGE.replace("LEGEND", legend).replace("SECTIONS", "\n".join(sections))


def _html_row(row: dict, terms: dict) -> str:
    cells = [(row["arm"], row["arm"]),
             (evaluations(row), _key(row["fresh"] and row["fresh"].value)),
             (row["reached"], row["arrived"]),
             (shown(row["epochs"]), _key(row["epochs"] and row["epochs"].value)),
             (took(row["paces"]), _key(min(row["paces"], default=None))),
             (shown(row["seconds"]), _key(row["seconds"] and row["seconds"].value)),
             (at_least(row["ratio"]), _cheaper(row)),
             (number(row["tuned"]), _key(row["tuned"])),
             (f"{100 * row['near']:.0f} %", _key(row["near"])),
             (bounded(row["defaults"]), _key(row["defaults"][0]))]
    line = "".join(f'<td data-key="{html.escape(str(key))}">{html.escape(text)}</td>'
                   for text, key in cells)
    return (f'<tbody><tr class="row">{line}</tr><tr class="more" hidden><td colspan="{len(cells)}">'
            f"{_svg(row['runs'], terms)}<pre>{html.escape(row['text'])}</pre></td></tr></tbody>")


def _svg(runs: list[dict], terms: dict) -> str:
    """The metric over gradient evaluations, one line a fresh run, and the target; what is to
    become small, as perplexity, on a log scale."""
    width, height = 640, 220
    metric, target = terms["metric"], terms["target"]
    scale = math.log if terms["mode"] == "min" else float
    curves = [[(x, y) for x, y in zip(run["curve"].get(COST, []), run["curve"].get(metric, []),
                                      strict=False) if y is not None] for run in runs]
    points = [point for curve in curves for point in curve]
    if not points:
        return "<p>no fresh run: no trial reached the target</p>"
    right = max(x for x, _ in points)
    low, high = (end(*(y for _, y in points), target) for end in (min, max))
    span = (scale(high) - scale(low)) or 1

    def at(x: float, y: float) -> tuple[float, float]:
        return width * x / right, height * (scale(high) - scale(y)) / span

    def line(kind: str, curve: list[tuple[float, float]]) -> str:
        corners = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in curve)
        return f'<polyline class="{kind}" points="{corners}"/>'

    def label(text: str, x: float, y: float, anchor: str = "end") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'

    heights = {y: at(0, y)[1] for y in (low, high, target)}
    marked = [y for y in (low, high) if abs(heights[y] - heights[target]) > 12] + [target]
    drawn = [f"<title>{metric} over gradient evaluations</title>",
             *(line("run", curve) for curve in curves),
             line("target", [(0, target), (right, target)]),
             *(label(number(y), -6, heights[y] + 4) for y in marked),
             label(metric.removeprefix("eval_"), -6, -14, "start"),
             label("0", 0, height + 16, "middle"), label(number(right), width, height + 16),
             label("gradient evaluations", width / 2, height + 16, "middle")]
    return f'<svg viewBox="-60 -26 {width + 70} {height + 46}" role="img">{"".join(drawn)}</svg>'


def _cheaper(row: dict) -> float:
    """What "times cheaper" sorts by: the baseline itself is 1, what never arrived 0."""
    if row["ratio"] is None:
        return float(row["arm"] == BASELINE)
    return 0.0 if math.isnan(row["ratio"].value) else _key(row["ratio"].value)


def _key(value: float | None) -> float:
    """What a column sorts by."""
    return 1e300 if value is None or not math.isfinite(value) else value
