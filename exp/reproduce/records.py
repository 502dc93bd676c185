"""Finished runs as records: read from run folders, kept in outputs/paper/<table>.json.

The JSON is all that a table, its figure and its verdicts are made from. Settings and sources,
which many runs share, are stored once, under their hash.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from exp.harness.config import complete
from exp.harness.errors import ConfigError
from exp.jobs.finished import is_finished, read_folder
from exp.jobs.queue import Job, current, essential, folder_settings, task_named
from exp.reproduce.plan import PROTOCOLS, SCALES, Table

KEY = ("row", "scale", "protocol", "seed")


def read_kept(path: Path) -> dict:
    """The kept records of a table, or an empty set of them. Raises ConfigError for a damaged file.
    """
    if not path.exists():
        return {"runs": [], "settings": {}, "sources": {}}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}): restore it or delete it") from error


def collect(table: Table, outputs: Path, kept: dict) -> dict:
    """The kept records with every finished run of the table's folders in `outputs` added.

    A kept record whose settings are no longer the table's is dropped, one whose folder holds a
    finished run is replaced.
    """
    found = {}
    planned = {}
    for row, scale, protocol in cells(table):
        wanted = table.job(row, 0, scale, protocol, outputs).settings()
        planned[row.label, scale, protocol] = wanted
        for folder in table.job(row, 0, scale, protocol, outputs).folder.parent.glob("seed*"):
            seed = folder.name.removeprefix("seed")
            if seed.isdigit() and is_finished(folder) \
                    and folder_settings(folder, table.task) == wanted:
                record, settings, sources = read_folder(folder)
                record = {"row": row.label, "config": row.config, "scale": scale,
                          "protocol": protocol, "seed": int(seed), **record}
                found[tuple(record[key] for key in KEY)] = record, settings, sources
    task = task_named(table.task)
    for record in kept["runs"]:
        key = tuple(record[name] for name in KEY)
        # As with a folder: completed with today's defaults, keys that came later among them.
        settings = essential(complete(kept["settings"][record["settings"]], task))
        if key not in found and planned.get(key[:3]) == settings:
            found[key] = record, settings, kept["sources"][record["sources"]]
    order = {row.label: number for number, row in enumerate(table.rows)}
    ranked = sorted(found.values(), key=lambda item: (
        item[0]["scale"], item[0]["protocol"], order[item[0]["row"]], item[0]["seed"]))
    return _deduplicated(ranked)


def cells(table: Table) -> list:
    """(row, scale, protocol) of everything that the table can run."""
    return [(row, scale, protocol) for scale in SCALES if scale in table.scales
            for protocol in PROTOCOLS if protocol in table.protocols for row in table.rows]


def is_done(job: Job, records: dict, any_version: bool) -> bool:
    """Whether the collected records hold the job's run, by the code as it is or by any."""
    for record in records["runs"]:
        if record["seed"] == job.seed and record["settings"] == _hash(job.settings()):
            sources = records["sources"][record["sources"]]
            return any_version or current(sources)
    return False


def write_kept(path: Path, records: dict) -> None:
    """Write the records as a whole, one run a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [f"{json.dumps(key)}: {_lines(value)}" for key, value in records.items()]
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        temporary.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _deduplicated(items: Iterable[tuple[dict, dict, dict]]) -> dict:
    result = {"settings": {}, "sources": {}, "runs": []}
    for record, *shared in items:
        record = dict(record)
        for name, value in zip(("settings", "sources"), shared, strict=True):
            record[name] = _hash(value)
            result[name][record[name]] = value
        result["runs"].append(record)
    return result


def _hash(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _lines(value: dict | list) -> str:
    if isinstance(value, list):
        return "[\n" + ",\n".join(json.dumps(item) for item in value) + "\n]"
    return "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n}"
