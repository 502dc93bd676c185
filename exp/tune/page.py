"""The leaderboard as one self-contained page: sortable, behind each row its curves and config."""

import html
import math

from exp.tune.report import (
    BASELINE,
    COST,
    at_least,
    bounded,
    evaluations,
    number,
    rows_of,
    shown,
    terms_line,
)

HEAD = ("optimizer", "fresh: evaluations", "reached", "epochs", "seconds",
        f"times cheaper than {BASELINE}", "tuned: evaluations", "near best", "defaults")
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>ARS leaderboard</title>
<meta name="viewport" content="width=device-width">
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem;
       color: #1f2937 }
table { border-collapse: collapse; width: 100% }
th, td { padding: .35rem .6rem; text-align: left; border-bottom: 1px solid #e3e5e8 }
th { cursor: pointer; white-space: nowrap } th[data-order]::after { content: " \\2193" }
th[data-order="-1"]::after { content: " \\2191" }
.row { cursor: pointer } .row:hover { background: #f3f4f6 }
svg { width: 640px; max-width: 100%; background: #fafafa }
polyline { fill: none; stroke: #1f5fbf; stroke-width: 1.4; opacity: .7 }
.target { stroke: #c2410c; stroke-dasharray: 5 4 } pre { overflow: auto; font-size: 12px }
</style></head><body>
<h1>Who needs how much, after equal tuning</h1>
<p>Click a heading to sort, a row for its learning curves and the config that reproduces it.
"No trial": the search found no setting that gets there; "never": fresh runs did not. What the
columns mean stands above the tables of leaderboard.md.</p>
SECTIONS
<script>
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.querySelectorAll("th")];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const order = head.dataset.order === "1" ? -1 : 1;
    heads.forEach(other => delete other.dataset.order);
    head.dataset.order = order;
    const key = body => body.querySelectorAll(".row td")[column].dataset.key;
    const number = text => text.trim() !== "" && isFinite(text) ? Number(text) : null;
    const bodies = [...table.tBodies].sort((a, b) => {
      const [x, y] = [number(key(a)), number(key(b))];
      return order * (x !== null && y !== null ? x - y : key(a).localeCompare(key(b)));
    });
    table.append(...bodies);
  }));
  for (const row of table.querySelectorAll(".row"))
    row.addEventListener("click", () => { row.nextElementSibling.hidden ^= true; });
}
</script></body></html>
"""


def render_html(board: dict) -> str:
    """leaderboard.html: sortable tables, behind each row its curves and its config; one file."""
    sections = []
    for name, task in board["tasks"].items():
        body = "".join(_html_row(row, task["terms"]) for row in rows_of(task))
        head = "".join(f"<th>{html.escape(title)}</th>" for title in HEAD)
        sections.append(f"<h2>{html.escape(name)}</h2><p>{html.escape(terms_line(task))}</p>"
                        f"<table><thead><tr>{head}</tr></thead>{body}</table>")
    return PAGE.replace("SECTIONS", "\n".join(sections))


def _html_row(row: dict, terms: dict) -> str:
    cells = [(row["arm"], row["arm"]),
             (evaluations(row), _key(row["fresh"] and row["fresh"].value)),
             (row["reached"], row["arrived"]),
             (shown(row["epochs"]), _key(row["epochs"] and row["epochs"].value)),
             (shown(row["seconds"]), _key(row["seconds"] and row["seconds"].value)),
             (at_least(row["ratio"]), _key(row["ratio"].value) if row["ratio"] else 0.0),
             (number(row["tuned"]), _key(row["tuned"])),
             (f"{100 * row['near']:.0f} %", _key(row["near"])),
             (bounded(row["defaults"]), _key(row["defaults"][0]))]
    line = "".join(f'<td data-key="{html.escape(str(key))}">{html.escape(text)}</td>'
                   for text, key in cells)
    return (f'<tbody><tr class="row">{line}</tr><tr class="more" hidden><td colspan="{len(cells)}">'
            f"{_svg(row['runs'], terms)}<pre>{html.escape(row['text'])}</pre></td></tr></tbody>")


def _svg(runs: list[dict], terms: dict) -> str:
    """The metric over gradient evaluations, one line a fresh run, and the target."""
    width, height = 640, 220
    curves = [[(x, y) for x, y in zip(run["curve"].get(COST, []),
                                      run["curve"].get(terms["metric"], []), strict=False)
               if y is not None] for run in runs]
    points = [point for curve in curves for point in curve]
    if not points:
        return "<p>no fresh run: no trial reached the target</p>"
    right = max(x for x, _ in points)
    low, high = (end(*(y for _, y in points), terms["target"]) for end in (min, max))

    def at(x: float, y: float) -> str:
        return f"{width * x / right:.1f},{height * (high - y) / ((high - low) or 1):.1f}"

    lines = "".join(f'<polyline points="{" ".join(at(x, y) for x, y in curve)}"/>'
                    for curve in curves)
    return (f'<svg viewBox="-4 -4 {width + 8} {height + 8}" role="img"><title>{terms["metric"]} '
            f'over gradient evaluations</title>{lines}<polyline class="target" '
            f'points="{at(0, terms["target"])} {at(right, terms["target"])}"/></svg>')


def _key(value: float | None) -> float:
    """What a column sorts by."""
    return 1e300 if value is None or not math.isfinite(value) else value
