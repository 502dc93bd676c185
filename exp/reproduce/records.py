"""Finished runs as records: read from run folders, kept in outputs/paper/<table>.json.

A table, its figure and its verdicts are made from the JSON alone. Settings and sources, which many
runs share, are stored once, under their hash.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from exp.harness.config import load_settings
from exp.harness.errors import ConfigError
from exp.harness.lock import exclusive
from exp.harness.recipes import changes, recipes
from exp.harness.task import task_named
from exp.jobs.finished import finished_run
from exp.jobs.freshness import Identity, kept_identity
from exp.jobs.queue import Job
from exp.report.jsonfile import read_json, write_json
from exp.reproduce.plan import Cell, Table


def read_kept(path: Path) -> dict:
    """Read the kept records of a table, empty if there is no file. Raises ConfigError for a damaged
    file."""
    try:
        return read_json(path) or {"runs": [], "settings": {}, "sources": {}}
    except ValueError as error:
        raise ConfigError(str(error)) from error


def kept_path(table: Table, outputs: Path) -> Path:
    """The file of a table's kept records."""
    return outputs / "paper" / f"{table.name}.json"


def collect(table: Table, outputs: Path, kept: dict) -> dict:
    """Return the kept records and every finished run of the table's folders in `outputs`.

    A kept record is dropped if its settings are no longer the table's, and replaced if its folder
    holds a finished run.
    """
    task, runs = task_named(table.task), {}
    planned = {(row.label, cell): table.job(row, 0, cell, outputs)
               for row in table.rows for cell in table.cells()}
    wanted = {place: job.identity() for place, job in planned.items()}
    for place, job in planned.items():
        for folder in job.folder.parent.glob("seed*"):
            seed = folder.name.removeprefix("seed")
            run = finished_run(folder, task) if seed.isdigit() else None
            if run and run[1].has_settings_of(wanted[place]):
                record = {**_labels(*place, job), "seed": int(seed), **run[0]}
                runs[(*place, int(seed))] = record, run[1].settings, run[2]
    for record in kept["runs"]:
        settings, place = kept["settings"][record["settings"]], (record["row"], cell_of(record))
        identity = kept_identity(settings, record.get("recipes", {}), task)
        if place in wanted and identity.has_settings_of(wanted[place]):
            runs.setdefault((*place, record["seed"]),
                            (record, identity.settings, kept["sources"][record["sources"]]))
    order = {place: number for number, place in enumerate(planned)}
    ranked = sorted(runs.items(), key=lambda item: (
        item[0][1].scale, item[0][1].protocol, order[item[0][:2]], item[0][2]))
    return _deduplicated(run for _, run in ranked)


def has_same_runs(records: dict, kept: dict) -> bool:
    """Whether both hold the same runs, regardless of the defaults that completed their settings."""
    first, second = ([{**run, "settings": "", "sources": ""} for run in each["runs"]]
                     for each in (records, kept))
    return first == second


def cell_of(record: dict) -> Cell:
    """The cell of a recorded run."""
    return Cell(record["scale"], record["protocol"], tuple(record.get("levels", ())))


def _labels(row: str, cell: Cell, job: Job) -> dict:
    """The keys of a record that say where the run belongs in its table."""
    levels = {"levels": list(cell.levels)} if cell.levels else {}
    return {"row": row, "config": job.config.stem, "scale": cell.scale,
            "protocol": cell.protocol, **levels}


def outdated(table: Table, runs: Iterable[dict]) -> dict[str, dict[str, list[int]]]:
    """Row -> changes of RECIPE numbers ("optimizer.muon 1 -> 2") -> seeds, of the runs that today's
    code would compute differently."""
    task, rows = task_named(table.task), {row.label: row for row in table.rows}
    now: dict[str, dict[str, int]] = {}
    outdated_seeds: dict[str, dict[str, list[int]]] = {}
    for run in runs:
        if (label := run["row"]) not in now:
            overrides = table.overrides(rows[label], cell_of(run))
            now[label] = recipes(load_settings(rows[label].path, overrides, task), task)
        if changed := changes(run.get("recipes") or {}, now[label]):
            outdated_seeds.setdefault(label, {}).setdefault(changed, []).append(run["seed"])
    return outdated_seeds


def is_done(job: Job, records: dict, any_version: bool) -> bool:
    """Whether the collected records hold the job's run, with `any_version` of any RECIPE."""
    wanted = job.identity()
    kept = (Identity(records["settings"][record["settings"]], record.get("recipes", {}))
            for record in records["runs"] if record["seed"] == job.seed)
    return any(one.has_settings_of(wanted) if any_version else one.counts_as(wanted)
               for one in kept)


def keep_finished(table: Table, outputs: Path, path: Path) -> dict:
    """Add the finished runs of the table's folders in `outputs` to the kept records in the file
    `path`, one line per run, and return these. Other processes that add runs wait meanwhile."""
    with exclusive(path.parent.with_suffix(".lock")):
        before = read_kept(path)
        records = collect(table, outputs, before)
        if not has_same_runs(records, before):
            write_json(path, records, depth=2)
        return read_kept(path)


def _deduplicated(items: Iterable[tuple[dict, dict, dict]]) -> dict:
    result: dict[str, Any] = {"settings": {}, "sources": {}, "runs": []}
    for record, *shared in items:
        record = dict(record)
        for name, value in zip(("settings", "sources"), shared, strict=True):
            record[name] = hash_of(value)
            result[name][record[name]] = value
        result["runs"].append(record)
    return result


def hash_of(value: dict) -> str:
    """The key under which settings or sources are stored: 12 hex digits of SHA-256."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
