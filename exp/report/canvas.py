"""The plot canvas of all figures; one display name and one color per optimizer.

    with canvas(path, columns=2, title="CIFAR-10") as panels:     # panels: array (rows, columns)
        for label, style in styles(["adamw", "ars2_neo_lazy"]).items():
            panels[0, 0].plot(lr, loss[label], **style)           # color, dashes, marker, legend
        panels[0, 0].set(xlabel="learning rate", ylabel="eval loss (nats)", xscale="log")

On exit, `canvas` draws the grid, hides panels without data, puts one legend of all labels beneath
the panels and saves a PNG whose bytes depend only on the data. `display_name` and `color` serve
text and marks drawn by hand. exp.report imports no other package of exp.
"""

import colorsys
import functools
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

GRID, TEXT, ACCENT, NEUTRAL = "#e3e5e8", "#374151", "#c2410c", "#8a8f98"
OURS = "#1f5fbf"  # our measurements, beside the claims of others (ACCENT)
# Colors of optimizers that are often drawn together, by `_key`; others get the hue of a hash.
COLORS = {
    "adamw": "#111827", "sgd": "#8a8f98", "lion": "#c2410c", "soap": "#f59e0b", "kfac": "#78350f",
    "muon": "#15803d", "muonsquared": "#84cc16", "adamuon": "#0d9488", "normuon": "#4d7c0f",
    "trmuon": "#0e7490", "rmsuon": "#a855f7", "adarmsuon": "#6d28d9", "ars": "#ec4899",
    "sam": "#e11d48", "ars2neo": "#2563eb", "ars2neobase": "#60a5fa", "ars2neosync": "#1d4ed8",
    "ars2neolazy": "#06b6d4", "ars2neoaga": "#1e3a8a"}
DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
MARKERS = "osD^vP"


@contextmanager
def canvas(path: Path, rows: int = 1, columns: int = 1, panel: tuple[float, float] = (4.2, 3.4),
           title: str = "", legend: bool = True, **subplots: Any) -> Iterator[np.ndarray]:
    """Yield an array (rows, columns) of panels, `panel` inches each; write the figure as PNG.

    subplots: arguments of `Figure.subplots`, e.g. sharey=True.
    """
    figure, panels = blank(rows, columns, panel, **subplots)
    yield panels
    for axes in panels.flat:
        _finish(axes)
    if legend:
        _legend(figure, panels)
    figure.suptitle(title or None, fontsize=12, parse_math=False)
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None})


def blank(rows: int, columns: int, panel: tuple[float, float], **subplots: Any) -> tuple:
    """Return (figure, array of its panels), for output other than PNG, e.g. an animation."""
    os.environ["MPLBACKEND"] = "agg"  # the backend of a notebook may not be installed here
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(panel[0] * columns, panel[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **subplots)


def grid_of(count: int, most: int = 3) -> tuple[int, int]:
    """Return (rows, columns) for `count` panels, at most `most` per row."""
    columns = max(1, min(most, count))
    return max(1, -(-count // columns)), columns


def curves(path: Path, panels: dict[str, dict[str, tuple]], *, xlabel: str, ylabel: str,
           most: int = 3, title: str = "", points: bool = False, sharey: bool = False,
           symlog: dict[str, float] | None = None, xticks: Sequence[float] = (),
           **axes: object) -> None:
    """Write a figure of lines. panels: title -> label -> (xs, ys), at most `most` panels per row.

    points: markers without lines. symlog: "x" or "y" -> the value where its scale turns from linear
    to logarithmic. axes: arguments of `Axes.set`, e.g. xscale="log".
    """
    style = styles(dict.fromkeys(label for lines in panels.values() for label in lines))
    with canvas(path, *grid_of(len(panels), most), title=title, sharey=sharey) as grid:
        for panel, (name, lines) in zip(grid.flat, panels.items(), strict=False):
            for label, (xs, ys) in lines.items():
                panel.plot(xs, ys, **style[label] | ({"linestyle": ""} if points else {}))
            panel.set(title=name, xlabel=xlabel, ylabel=ylabel, **axes)
            for axis, threshold in (symlog or {}).items():
                getattr(panel, f"set_{axis}scale")("symlog", linthresh=threshold)
            if xticks:
                panel.set_xticks(xticks, map("{:g}".format, xticks))
                panel.minorticks_off()


def styles(labels: Iterable[str]) -> dict[str, dict]:
    """Return label -> color, linestyle, marker and label for `Axes.plot`.

    The color is the optimizer's. Labels that name no optimizer share a color if they agree up to
    the last comma or colon. Dashes and marker differ among the lines of one color.
    """
    seen: Counter = Counter()
    others: dict[str, str] = {}
    result = {}
    for label in labels:
        base = re.split(r"[:,] (?!.*[:,] )", label)[0]
        chosen = color(label) if _optimizer(label) else others.setdefault(base, f"C{len(others)}")
        number = seen[chosen] % len(DASHES)
        seen[chosen] += 1
        result[label] = {"color": chosen, "linestyle": DASHES[number],
                         "marker": MARKERS[number], "markersize": 3.5, "linewidth": 1.6,
                         "label": display_name(label)}
    return result


def color(label: str) -> str:
    """Return the optimizer's color, the same in all figures. A label begins with the optimizer's
    name in any spelling ("ars2_neo_lazy", "ARS2-Neo Lazy k=5"); the rest names a variant."""
    key = _key(label)
    known = [name for name in COLORS if key.startswith(name)]
    optimizer = _optimizer(label)
    best = max([*known, *([optimizer] if optimizer else [])], key=len, default=key)
    if best in COLORS:
        return COLORS[best]
    hue = int(hashlib.sha256(best.encode()).hexdigest()[:8], 16) / 2**32
    return "#" + "".join(f"{round(255 * c):02x}" for c in colorsys.hsv_to_rgb(hue, 0.6, 0.7))


def display_name(label: str) -> str:
    """"adamw" -> "AdamW", "ars2_neo_lazy" -> "ARS2-Neo Lazy", "sam_adamw" -> "SAM-AdamW"; a label
    that is not the identifier of a known optimizer is returned unchanged."""
    optimizer = _optimizer(label)
    if optimizer is None or not re.fullmatch(r"[a-z0-9_]+", label):
        return label
    rest = _key(label)[len(optimizer):]
    if rest in _names():
        return f"{_names()[optimizer]}-{_names()[rest]}"
    return " ".join([_names()[optimizer], *filter(None, [rest.upper() if len(rest) < 4
                                                         else rest.capitalize()])])


def _optimizer(label: str) -> str | None:
    """Return the key of the longest optimizer name that a label begins with, None without one."""
    key = _key(label)
    return max((name for name in _names() if key.startswith(name)), key=len, default=None)


@functools.cache
def _names() -> dict[str, str]:
    """Return key -> display name: the first words of the optimizer's file, or torch's class name.
    """
    import torch

    from optimizer import available_optimizers

    folder = Path(__file__).parents[2] / "optimizer"
    classes = {_key(name): name for name in vars(torch.optim)}
    names = {}
    for stem in available_optimizers():
        names[_key(stem)] = classes.get(_key(stem), stem)
        if (file := folder / f"{stem}.py").exists():
            summary = file.read_text(encoding="utf-8").split('"""')[1]
            names[_key(stem)] = re.split(r",|:| \(", summary)[0]
    return names


def _key(label: str) -> str:
    return re.sub(r"[^a-z0-9]", "", label.lower())


def _finish(axes) -> None:
    """Draw the grid and spines of a panel, without mathtext in its texts (a folder may be named
    $x^$). Hide a panel without data."""
    if not axes.has_data():
        axes.set_axis_off()
        return
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set_parse_math(False)
    for axis in (axes.xaxis, axes.yaxis):
        _log_ticks(axis)


def _log_ticks(axis) -> None:
    """Set plain numbers as ticks of a logarithmic axis of less than two decades, where matplotlib's
    2 x 10^3 overlap. Ticks set by the caller stay."""
    from matplotlib.ticker import AutoLocator, LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    if isinstance(axis.get_major_locator(), LogLocator) and high < 100 * low:
        subs = (1, 2, 5) if high > 4 * low else range(1, 10) if high > 1.5 * low else None
        axis.set_major_locator(LogLocator(subs=subs) if subs else AutoLocator())
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def _legend(figure, panels: np.ndarray) -> None:
    """Draw one legend under the panels; a label of several panels appears once."""
    handles = {label: handle for axes in panels.flat if axes.get_legend() is None
               for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if not handles:
        return
    widest = max(map(len, handles)) * 0.075 + 0.6  # inches
    legend = figure.legend(handles.values(), handles, loc="outside lower center", frameon=False,
                           fontsize=8, ncols=max(1, min(len(handles), int(
                               figure.get_figwidth() / widest))))
    for text in legend.texts:
        text.set_parse_math(False)
