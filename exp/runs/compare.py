"""Comparison of runs: final numbers, settings that differ, curves."""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from exp.harness.errors import ConfigError
from exp.harness.task import FRACTION, task_named, tasks
from exp.report.tables import page, table
from exp.runs.records import Record, flat, is_number

AXES = {"evaluations": "gradient_evaluations", "seconds": "seconds", "epochs": "epoch"}
FINAL = ("gradient_evaluations", "seconds", "train_", "eval_")  # prefixes of metrics.jsonl keys
FACTS = ("device", "threads", "data", "commit", "versions")  # keys of run.json


def comparison(runs: dict[str, Record]) -> str:
    """Return a table of the runs and one of the settings that differ, as Markdown.

    runs: display name -> run.
    """
    rows = {name: run.row() | {key: value for key, value in (run.lines or [{}])[-1].items()
                               if is_number(value) and key.startswith(FINAL)}
            for name, run in runs.items()}
    columns = dict.fromkeys(key for row in rows.values() for key in row if key != "age")
    finals = [(name, *map(row.get, columns)) for name, row in rows.items()]
    settings = [{key: json.dumps(value, ensure_ascii=False, default=str) for key, value in flat(
        {**run.settings, "run": {key: run.facts.get(key) for key in FACTS}}, ".")}
        for run in runs.values()]
    keys = dict.fromkeys(key for values in settings for key in values)
    lines = [(key, *(values.get(key) for values in settings)) for key in keys]
    lines = [line for line in lines if len(set(line[1:])) > 1]
    return page(table([("run", *columns), *finals]), table([("setting", *runs), *lines]))


def draw(path: Path, runs: dict[str, Record], axis: str, metrics: Sequence[str] = ()) -> None:
    """Write a PNG with one panel per metric and a curve per run.

    axis: one of AXES. metrics: default: the losses and the metric of the best epoch.
    """
    from exp.report.canvas import canvas, display_name, grid_of, styles

    default = ("train_loss", "eval_loss", *(run.best[0] for run in runs.values()))
    shown = list(filter(None, dict.fromkeys(metrics or default)))
    style = styles(f"{run.optimizer}, {name}" for name, run in runs.items())
    looks = [look | {"label": f"{name}: {display_name(run.optimizer)}"}
             for look, (name, run) in zip(style.values(), runs.items(), strict=True)]
    with canvas(path, *grid_of(len(shown))) as panels:
        for metric, panel in zip(shown, panels.flat, strict=False):
            for run, look in zip(runs.values(), looks, strict=True):
                xs, ys = run.curve(metric, AXES[axis])
                if xs:
                    panel.plot(xs, ys, **look | ({} if len(xs) < 40 else {"marker": ""}))
            label, scale = _axis(metric, {run.row()["task"] for run in runs.values()})
            panel.set(xlabel=AXES[axis].replace("_", " "), ylabel=label, yscale=scale)


def _axis(name: str, names: Iterable[str]) -> tuple[str, str]:
    """Axis label and scale of a metric, from a task of `names` that declares it."""
    for task in set(tasks()).intersection(names):
        with suppress(ConfigError):
            metric = task_named(task).metric(name)
            unit = "" if metric.unit in ("", FRACTION) else f" ({metric.unit})"
            return (f"{name.split('_')[0]} {metric.label}{unit}",
                    "log" if metric.mode == "min" else "linear")
    return name, "linear"
