"""HTML of the web page: text, tables and the forest plot. Style and script lie beside this file."""

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
WIDTH, LEFT, ROW, FOOT = 640, 190, 24, 44  # of the forest plot, pixels
LONG = 40  # characters from which a column is kept wide
CLASSES = {"holds": "holds", "not established": "", "does not hold": "fails", "refuted": "fails"}


def document(sections: Mapping[str, str]) -> str:
    """The whole page, self-contained, from its sections: title -> HTML."""
    ids = {title: re.sub(r"\W+", "-", title.lower()).strip("-") for title in sections}
    nav = " ".join(f'<a href="#{ids[title]}">{html.escape(title)}</a>' for title in sections)
    content = "\n".join(f'<section aria-labelledby="{ids[title]}">\n<h2 id="{ids[title]}">'
                        f"{html.escape(title)}</h2>\n{body}\n</section>"
                        for title, body in sections.items())
    css, js, page = ((FOLDER / f"page.{kind}").read_text(encoding="utf-8")
                     for kind in ("css", "js", "html"))
    parts = {"css": css, "js": js, "nav": nav, "content": content}
    return re.sub(r"\{(css|js|nav|content)\}", lambda found: parts[found[1]], page)


def inline(text: str) -> str:
    """A line of the Markdown that pages here use: code, bold, <sub>, links; the rest is escaped."""
    text = html.escape(text, quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    text = re.sub(r"\*\*(.+?)\*\*", _strong, text)
    text = re.sub(r"(?<!\*)\*([^*\s][^*]*)\*(?!\*)", r"<em>\1</em>", text)
    text = re.sub(r"&lt;sub&gt;(.*?)&lt;/sub&gt;", r" <small>\1</small>", text)
    return re.sub(r"\[([^\]]+)\]\((https?://[^)\s]+)\)", r'<a href="\2">\1</a>', text)


def _strong(found: re.Match) -> str:
    name = CLASSES.get(found[1], "")
    return f'<strong class="{name}">{found[1]}</strong>' if name else f"<strong>{found[1]}</strong>"


def paragraphs(text: str) -> str:
    """Paragraphs, with an empty line between them."""
    return "\n".join(f"<p>{inline(part)}</p>" for part in text.strip().split("\n\n") if part)


def table(caption: str, lines: Sequence[Sequence[str]]) -> str:
    """A sortable table; lines: the head, then rows whose first cell names them, as Markdown."""
    head, *rows = lines
    long = [any(len(row[column]) > LONG for row in rows) for column in range(len(head))]
    cells = "".join(f'<th scope="col">{inline(cell) or "name"}</th>' for cell in head)
    body = "\n".join(f'<tr><th scope="row">{inline(row[0])}</th>' + "".join(
        f"<td{' class=long' if wide else ''}>{inline(cell)}</td>"
        for cell, wide in zip(row[1:], long[1:], strict=True)) + "</tr>" for row in rows)
    label = html.escape(caption, quote=True)
    return (f'<div class="wide" tabindex="0" role="region" aria-label="{label}">\n'
            f'<table class="sortable"><caption>{inline(caption)}</caption>\n'
            f"<thead><tr>{cells}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>")


def details(summary: str, body: str) -> str:
    """What unfolds."""
    return f"<details><summary>{inline(summary)}</summary>\n{body}\n</details>"


def code(text: str) -> str:
    """A block of code."""
    return f"<pre>{html.escape(text, quote=False)}</pre>"


def forest(title: str, rows: Iterable[tuple[str, float, float, float]]) -> str:
    """A forest plot as SVG: (name, ratio, low, high) a line, on a log axis with 1 marked."""
    rows = list(rows)
    ends = [end for _, *values in rows for end in values if end > 0 and math.isfinite(end)]
    if not ends:
        return ""
    low, high = math.log(min([*ends, 0.8])), math.log(max([*ends, 1.25]))
    span, height = high - low, ROW * len(rows) + FOOT

    def x(value: float) -> float:
        share = (math.log(min(max(value, math.exp(low)), math.exp(high))) - low) / span
        return round(LEFT + share * (WIDTH - LEFT - 20), 1)

    marks = [f'<line class="one" x1="{x(1)}" x2="{x(1)}" y1="0" y2="{height - FOOT}"/>']
    for number, (name, ratio, left, right) in enumerate(rows):
        y = ROW * number + ROW / 2
        marks.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{html.escape(name)}'
                     f'</text><line class="interval" x1="{x(left)}" x2="{x(right)}" y1="{y}" '
                     f'y2="{y}"/><circle class="point" cx="{x(ratio)}" cy="{y}" r="4"/>')
    ticks = [tick for tick in (0.1, 0.25, 0.5, 1, 2, 4, 10)
             if math.exp(low) <= tick <= math.exp(high)]
    foot = height - FOOT
    marks += [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - 20}" y1="{foot}" y2="{foot}"/>',
              *(f'<text x="{x(tick)}" y="{foot + 18}" text-anchor="middle">{tick:g}</text>'
                for tick in ticks),
              f'<text x="{(LEFT + WIDTH) / 2}" y="{foot + 37}" text-anchor="middle">'
              f"{html.escape(title)}</text>"]
    told = "; ".join(f"{name} {ratio:.3g} from {left:.3g} to {right:.3g}"
                     for name, ratio, left, right in rows)
    return (f'<div class="wide plot" tabindex="0" role="region" aria-label="Forest plot">\n'
            f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img" '
            f'aria-label="{html.escape(f"{title}: {told}", quote=True)}">\n'
            + "\n".join(marks) + "\n</svg></div>")
