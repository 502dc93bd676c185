"""Run folders read as data: nothing that a file names is imported, damaged files are tolerated."""

import json
import os
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exp.harness.errors import ConfigError
from exp.harness.lock import holder
from exp.jobs.states import ENDS

COUNTERS = ("epoch", "step", "gradient_evaluations", "seconds")  # keys of metrics.jsonl
COLUMNS = ("task", "optimizer", "seed", "state", "status", "epochs", "metric", "best", "age",
           "path")


@dataclass(frozen=True)
class Record:
    """One run folder; the content of a missing or damaged file is empty.

    settings: config.toml; facts: run.json; lines: metrics.jsonl; summary: summary.json.
    damaged: names of the files that cannot be read. state: as in exp.jobs.
    """

    path: Path
    settings: dict
    facts: dict
    lines: list[dict]
    summary: dict
    damaged: tuple[str, ...]
    state: str

    def row(self) -> dict[str, Any]:
        """Return the values of COLUMNS. metric, best: those of the best epoch; age: seconds since
        the last epoch was recorded."""
        experiment, (metric, best) = self.settings.get("experiment", {}), self.best
        record = self.path / "metrics.jsonl"
        age = time.time() - (record if record.exists() else self.path).stat().st_mtime
        return {"task": experiment.get("task"), "optimizer": self.optimizer,
                "seed": experiment.get("seed"), "state": self.state,
                "status": self.summary.get("status"), "epochs": len(self.lines),
                "metric": metric, "best": best, "age": round(age), "path": str(self.path)}

    @property
    def optimizer(self) -> str:
        """Names of the wrappers, the outermost first, and of the optimizer: sam_adamw."""
        table = self.settings.get("optimizer", {})
        wrappers = [key for key, value in table.items()
                    if isinstance(value, dict) and key != "adamw"]
        return "_".join([*reversed(wrappers), str(table.get("name", "?"))])

    @property
    def best(self) -> tuple[str, float] | tuple[None, None]:
        """Metric and value of the best epoch; the least eval_loss if there is no summary."""
        best = self.summary.get("best")
        for key, value in best.items() if isinstance(best, dict) else ():
            if key != "epoch" and not key.startswith("test_") and is_number(value):
                return key, value
        losses = self.curve("eval_loss", "epoch")[1]
        return ("eval_loss", min(losses)) if losses else (None, None)

    def curve(self, metric: str, counter: str) -> tuple[list[float], list[float]]:
        """Values of `counter`, one of COUNTERS, and of `metric` in the epochs that have both."""
        points = [(line[counter], line[metric]) for line in self.lines
                  if is_number(line.get(counter)) and is_number(line.get(metric))]
        return [x for x, _ in points], [y for _, y in points]

    def numbers(self) -> Iterator[dict]:
        """Yield one row per number: path, task, optimizer, seed, status, COUNTERS, metric (a
        diagnostic is "diagnostics/phi"), value (None if it was not finite)."""
        run = {key: self.row()[key] for key in ("path", "task", "optimizer", "seed", "status")}
        for line in self.lines:
            counters = {key: line.get(key) for key in COUNTERS}
            for metric, value in flat(line, "/"):
                if metric not in COUNTERS and (value is None or is_number(value)):
                    yield {**run, **counters, "metric": metric, "value": value}


def find_runs(roots: Iterable[Path]) -> list[Record]:
    """Read the runs in and below each folder. Raises ConfigError for a missing folder."""
    folders = []
    for root in roots:
        if not root.is_dir():
            raise ConfigError(f"no folder {root}")
        for folder, inside, files in os.walk(root):
            inside.sort()
            if not FILES.keys().isdisjoint(files):
                folders.append(Path(folder))
                inside.clear()
    return [read_run(folder) for folder in dict.fromkeys(folders)]


def read_run(folder: Path) -> Record:
    """Read a run folder; never raises for missing or damaged files."""
    contents: list[Any] = []
    damaged = []
    for name, (parse, empty) in FILES.items():
        try:
            contents.append(parse((folder / name).read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            contents.append(empty)
            if name != "summary.json" or not isinstance(error, FileNotFoundError):
                damaged.append(name)  # only a run that has ended has a summary
    settings, facts, lines, summary = contents
    state = "damaged" if damaged else ENDS.get(summary.get("status"), "failed")
    return Record(folder, settings, facts, lines, summary, tuple(damaged),
                  "running" if holder(folder) else state)


def flat(tables: dict, separator: str, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield (keys joined by `separator`, value) for every value of nested tables."""
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from flat(value, separator, f"{prefix}{key}{separator}")
        else:
            yield f"{prefix}{key}", value


def is_number(value: object) -> bool:
    """Whether a value of a JSON file is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _checked(content: object, **types: type) -> dict:
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind)
                                                for key, kind in types.items()):
        raise ValueError("not what a run writes")
    return content


def _settings(text: str) -> dict:
    settings = _checked(tomllib.loads(text), experiment=dict, optimizer=dict)
    _checked(settings["experiment"], task=str, seed=int)
    _checked(settings["optimizer"], name=str)
    return settings


# File -> (parser, content if it cannot be read). A crash may leave an incomplete last line.
FILES: dict[str, tuple[Callable[[str], Any], Any]] = {
    "config.toml": (_settings, {}),
    "run.json": (lambda text: _checked(json.loads(text)), {}),
    "metrics.jsonl": (lambda text: [_checked(json.loads(line)) for line in text.split("\n")[:-1]],
                      []),
    "summary.json": (lambda text: _checked(json.loads(text), status=str), {})}
