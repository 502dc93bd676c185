"""Run folders read as data: nothing that a file names is imported, damaged files are survived."""

import json
import os
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from exp.harness.errors import ConfigError
from exp.harness.lock import holder
from exp.jobs.states import ENDS

FILES = {"config.toml", "run.json", "metrics.jsonl", "summary.json"}
COUNTERS = ("epoch", "step", "gradient_evaluations", "seconds")  # of a line of metrics.jsonl
COLUMNS = ("task", "optimizer", "seed", "state", "status", "epochs", "metric", "best", "age",
           "path")


@dataclass(frozen=True)
class Record:
    """One run folder; a file that is missing or damaged is empty here.

    settings: config.toml; facts: run.json; lines: metrics.jsonl; summary: summary.json.
    damaged: the names of the files that cannot be read. running: whether a process writes to it.
    """

    path: Path
    settings: dict
    facts: dict
    lines: list[dict]
    summary: dict
    damaged: tuple[str, ...]
    running: bool

    def row(self) -> dict[str, str | float | None]:
        """COLUMNS: state as in exp.jobs, status of the summary, metric and value of the best
        epoch, age in seconds since the last epoch was recorded."""
        experiment, (metric, best) = self.settings.get("experiment", {}), self.best
        status = str(self.summary["status"]) if "status" in self.summary else None
        state = "damaged" if self.damaged else ENDS.get(status, "failed")
        record = self.path / "metrics.jsonl"
        age = time.time() - (record if record.exists() else self.path).stat().st_mtime
        return {"task": experiment.get("task"), "optimizer": self.optimizer,
                "seed": experiment.get("seed"), "state": "running" if self.running else state,
                "status": status, "epochs": len(self.lines), "metric": metric, "best": best,
                "age": round(age), "path": str(self.path)}

    @property
    def optimizer(self) -> str:
        """The optimizer's name after those of its wrappers, the outermost first: sam_adamw."""
        table = self.settings.get("optimizer", {})
        wrappers = [key for key, value in table.items()
                    if isinstance(value, dict) and key != "adamw"]
        return "_".join([*reversed(wrappers), str(table.get("name", "?"))])

    @property
    def best(self) -> tuple[str, float] | tuple[None, None]:
        """Metric and value of the best epoch; the least eval_loss where there is no summary."""
        best = self.summary.get("best")
        for key, value in best.items() if isinstance(best, dict) else ():
            if key != "epoch" and not key.startswith("test_") and is_number(value):
                return key, value
        losses = self.curve("eval_loss", "epoch")[1]
        return ("eval_loss", min(losses)) if losses else (None, None)

    def curve(self, metric: str, counter: str) -> tuple[list[float], list[float]]:
        """One of COUNTERS and a metric, at the epochs that have both."""
        points = [(line[counter], line[metric]) for line in self.lines
                  if is_number(line.get(counter)) and is_number(line.get(metric))]
        return [x for x, _ in points], [y for _, y in points]

    def numbers(self) -> Iterator[dict]:
        """A long row per number: path, task, optimizer, seed, status, COUNTERS, metric (as
        "diagnostics/phi" for one of the diagnostics), value (None if it was not finite)."""
        run = {key: self.row()[key] for key in ("path", "task", "optimizer", "seed", "status")}
        for line in self.lines:
            counters = {key: line.get(key) for key in COUNTERS}
            for metric, value in flat(line, "/"):
                if metric not in COUNTERS and (value is None or is_number(value)):
                    yield {**run, **counters, "metric": metric, "value": value}


def find_runs(roots: Iterable[Path]) -> list[Record]:
    """The runs in and beneath each of these folders. Raises ConfigError for no folder."""
    folders = []
    for root in roots:
        if not root.is_dir():
            raise ConfigError(f"no folder {root}")
        for folder, inside, files in os.walk(root):
            inside.sort()
            if not FILES.isdisjoint(files):
                folders.append(Path(folder))
                inside.clear()
    return [read_run(folder) for folder in dict.fromkeys(folders)]


def read_run(folder: Path) -> Record:
    """Read a run folder, whatever its files hold."""
    damaged = []

    def read(name: str, parse: Callable, empty: dict | list) -> dict | list:
        try:
            return parse((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            if name != "summary.json" or not isinstance(error, FileNotFoundError):
                damaged.append(name)  # only a run that has ended has a summary
            return empty

    contents = (read("config.toml", _settings, {}), read("run.json", _object, {}),
                read("metrics.jsonl", _lines, []), read("summary.json", _object, {}))
    return Record(folder, *contents, tuple(damaged), holder(folder) is not None)


def flat(tables: dict, separator: str, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The values of nested tables, each with the keys that lead to it."""
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from flat(value, separator, f"{prefix}{key}{separator}")
        else:
            yield f"{prefix}{key}", value


def is_number(value: object) -> bool:
    """Whether a value of a JSON file is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _settings(text: str) -> dict:
    settings = tomllib.loads(text)
    experiment, optimizer = settings["experiment"], settings["optimizer"]
    if not (isinstance(experiment["task"], str) and is_number(experiment["seed"])
            and isinstance(optimizer["name"], str)):
        raise ValueError("not a run's settings")
    return settings


def _object(text: str) -> dict:
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def _lines(text: str) -> list[dict]:
    return [_object(line) for line in text.split("\n")[:-1]]  # a crash cuts off the last one
