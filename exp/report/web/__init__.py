"""HTML of the web page: text, tables, curves and the forest plot. Style and script are in this
folder."""

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
PLOT = (360, 250)  # (width, height) of a plot of curves, pixels: a phone's width
LEFT_OF, RIGHT_OF, ABOVE, BELOW = 48, 8, 8, 40  # margins around its axes, pixels
STEPS = (1, 2, 5)  # distances between ticks, times a power of ten
FINE = (1, 1.5, 2, 3, 4, 5, 6, 8)  # ticks of a logarithmic axis with at most two of the former
WIDTH, LEFT, ROW, FOOT = 640, 190, 24, 44  # sizes of the forest plot, pixels
LONG = 40  # characters; a column with a longer cell is kept wide
CLASSES = {"holds": "holds", "not established": "", "does not hold": "fails", "refuted": "fails"}


def document(sections: Mapping[str, str]) -> str:
    """Return the self-contained page. sections: title -> HTML."""
    ids = {title: re.sub(r"\W+", "-", title.lower()).strip("-") for title in sections}
    nav = " ".join(f'<a href="#{ids[title]}">{html.escape(title)}</a>' for title in sections)
    content = "\n".join(f'<section aria-labelledby="{ids[title]}">\n<h2 id="{ids[title]}">'
                        f"{html.escape(title)}</h2>\n{body}\n</section>"
                        for title, body in sections.items())
    css, js, page = ((FOLDER / f"page.{kind}").read_text(encoding="utf-8")
                     for kind in ("css", "js", "html"))
    parts = {"css": css, "js": js, "nav": nav, "content": content}
    return re.sub(r"\{(css|js|nav|content)\}", lambda match: parts[match[1]], page)


def inline(text: str) -> str:
    """Convert a line of Markdown to HTML: code, bold, emphasis, <sub> and links; escape the rest.
    """
    text = html.escape(text, quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    text = re.sub(r"\*\*(.+?)\*\*", _strong, text)
    text = re.sub(r"(?<!\*)\*([^*\s][^*]*)\*(?!\*)", r"<em>\1</em>", text)
    text = re.sub(r"&lt;sub&gt;(.*?)&lt;/sub&gt;", r" <small>\1</small>", text)
    return re.sub(r"\[([^\]]+)\]\((https?://[^)\s]+)\)", r'<a href="\2">\1</a>', text)


def _strong(match: re.Match) -> str:
    name = CLASSES.get(match[1], "")
    return f'<strong class="{name}">{match[1]}</strong>' if name else f"<strong>{match[1]}</strong>"


def paragraphs(text: str) -> str:
    """HTML of Markdown paragraphs and bullet lists, which empty lines separate."""
    parts = (part for part in text.strip().split("\n\n") if part)
    return "\n".join(f"<p>{inline(part)}</p>" if not part.startswith("- ") else
                     "<ul>" + "".join(f"<li>{inline(item)}</li>"
                                      for item in part[2:].split("\n- ")) + "</ul>"
                     for part in parts)


def table(caption: str, lines: Sequence[Sequence[str]]) -> str:
    """Return a sortable table. lines: the head, then rows with their name in the first cell, as
    Markdown."""
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
    """Return a block of HTML `body` that unfolds at a click on `summary`."""
    return f"<details><summary>{inline(summary)}</summary>\n{body}\n</details>"


def code(text: str) -> str:
    """Return a block of code."""
    return f"<pre>{html.escape(text, quote=False)}</pre>"


def forest(title: str, rows: Iterable[tuple[str, float, float, float]]) -> str:
    """Return a forest plot as SVG, on a log axis with 1 marked. rows: (name, ratio, low, high).
    Empty without a finite value."""
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
    label = "; ".join(f"{name} {ratio:.3g} from {left:.3g} to {right:.3g}"
                      for name, ratio, left, right in rows)
    return (f'<div class="wide plot" tabindex="0" role="region" aria-label="Forest plot">\n'
            f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img" '
            f'aria-label="{html.escape(f"{title}: {label}", quote=True)}">\n'
            + "\n".join(marks) + "\n</svg></div>")


@dataclass(frozen=True)
class Line:
    """A line of a plot through the points (xs, ys). dashes: SVG's stroke-dasharray, "" for a solid
    line. low, high: ends of a band around the line, per point."""

    color: str
    dashes: str
    xs: Sequence[float]
    ys: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def curves(name: str, title: str, xlabel: str, ylabel: str, lines: Mapping[str, Line],
           log: bool = False) -> str:
    """Return a figure as SVG with a legend beneath. name: prefix of its HTML ids. lines: by label.
    log: make the y axis logarithmic."""
    width, height = PLOT
    across = Scale([x for line in lines.values() for x in (0, *line.xs)],
                    LEFT_OF, width - RIGHT_OF)
    up = Scale([y for line in lines.values() for y in (*line.ys, *line.low, *line.high)],
                height - BELOW, ABOVE, log)
    marks = [f'<path class="axis" d="M{LEFT_OF} {up(y):g}H{width - RIGHT_OF}"/>'
             f'<text x="{LEFT_OF - 6}" y="{up(y) + 4:g}" text-anchor="end">{y:g}</text>'
             for y in up.ticks]
    marks += [f'<text x="{across(x):g}" y="{height - BELOW + 16}" text-anchor="middle">{x:g}</text>'
              for x in across.ticks]
    marks.append(f'<text x="{(LEFT_OF + width) / 2:g}" y="{height - 6}" text-anchor="middle">'
                 f"{html.escape(xlabel)}</text>")
    for label, line in lines.items():
        band = zip((*line.xs, *line.xs[::-1]), (*line.high, *line.low[::-1]), strict=False)
        if line.high:
            marks.append(f'<polygon class="hued" fill="{line.color}" points="'
                         f'{_points(band, across, up)}"/>')
        marks.append(f'<polyline class="hued" {_stroke(line)} points="'
                     f'{_points(zip(line.xs, line.ys, strict=True), across, up)}">'
                     f"<title>{html.escape(label)}</title></polyline>")
    legend = "".join(f'<li><svg viewBox="0 0 28 8" aria-hidden="true"><path class="hued" '
                     f'{_stroke(line)} d="M0 4H28"/></svg>{html.escape(label)}</li>'
                     for label, line in lines.items())
    ends = "; ".join(f"{label}: {line.ys[0]:.3g} to {line.ys[-1]:.3g} at {line.xs[-1]:.0f}"
                     for label, line in lines.items())
    return (f'<figure class="curves"><figcaption>{html.escape(title)}: {html.escape(ylabel)}'
            f'</figcaption>\n<svg viewBox="0 0 {width} {height}" role="img" '
            f'aria-labelledby="{name}-title {name}-desc">\n<title id="{name}-title">'
            f'{html.escape(f"{title}: {ylabel} over {xlabel}")}</title>\n<desc id="{name}-desc">'
            f"First and last values. {html.escape(ends)}.</desc>\n" + "\n".join(marks)
            + f'\n</svg>\n<ul class="legend">{legend}</ul></figure>')


class Scale:
    """Maps values to pixels, from `first` for the least value to `last` for the largest. `ticks`:
    round values in between."""

    def __init__(self, values: Iterable[float], first: float, last: float, log: bool = False
                 ) -> None:
        finite = [value for value in values if math.isfinite(value)]
        self.low, self.high, self.first, self.last, self.log = (
            min(finite), max(finite), first, last, log)
        steps = [step * 10.0**power for power in range(-6, 10) for step in STEPS]
        if log:
            inside = [tick for tick in steps if self.low <= tick <= self.high]
            fine = [share * 10.0**power for power in range(-6, 10) for share in FINE]
            self.ticks = inside if len(inside) > 2 else [
                tick for tick in fine if self.low <= tick <= self.high]
        else:
            step = next(step for step in steps if self.high - self.low <= 5 * step)
            self.ticks = [step * number for number in range(math.ceil(self.low / step),
                                                            math.floor(self.high / step) + 1)]

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(number) if self.log else number
                         for number in (self.low, self.high, value))
        share = (at - low) / ((high - low) or 1)
        return round(self.first + share * (self.last - self.first), 1)


def _points(pairs: Iterable[tuple[float, float]], across: Scale, up: Scale) -> str:
    return " ".join(f"{across(x):g},{up(y):g}" for x, y in pairs if math.isfinite(y))


def _stroke(line: Line) -> str:
    dashes = f' stroke-dasharray="{line.dashes}"' if line.dashes else ""
    return f'stroke="{line.color}"{dashes}'
