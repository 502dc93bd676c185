"""Finished runs as records: read from run folders, kept in outputs/paper/<table>.json.

The JSON is all that a table, its figure and its verdicts are made from. Settings and sources,
which many runs share, are stored once, under their hash.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from exp.harness.errors import ConfigError
from exp.jobs.finished import finished_run
from exp.jobs.freshness import Identity, kept_identity
from exp.jobs.queue import Job, task_named
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
    task, found, wanted = task_named(table.task), {}, {}
    for row, scale, protocol in cells(table):
        job = table.job(row, 0, scale, protocol, outputs)
        wanted[row.label, scale, protocol] = planned = job.identity()
        for folder in job.folder.parent.glob("seed*"):
            seed = folder.name.removeprefix("seed")
            kept_run = finished_run(folder, task) if seed.isdigit() else None
            if kept_run and kept_run[1].has_settings_of(planned):
                record, identity, sources = kept_run
                record = {"row": row.label, "config": row.config, "scale": scale,
                          "protocol": protocol, "seed": int(seed), **record}
                found[_key(record)] = record, identity.settings, sources
    for record in kept["runs"]:
        settings, key = kept["settings"][record["settings"]], _key(record)
        identity = kept_identity(settings, record.get("recipes", {}), task)
        if key not in found and key[:3] in wanted and identity.has_settings_of(wanted[key[:3]]):
            found[key] = record, identity.settings, kept["sources"][record["sources"]]
    order = {row.label: number for number, row in enumerate(table.rows)}
    ranked = sorted(found.values(), key=lambda item: (
        item[0]["scale"], item[0]["protocol"], order[item[0]["row"]], item[0]["seed"]))
    return _deduplicated(ranked)


def cells(table: Table) -> list:
    """(row, scale, protocol) of everything that the table can run."""
    return [(row, scale, protocol) for scale in SCALES if scale in table.scales
            for protocol in PROTOCOLS if protocol in table.protocols for row in table.rows]


def is_done(job: Job, records: dict, any_version: bool) -> bool:
    """Whether the collected records hold the job's run; `any_version`: of any RECIPE."""
    wanted = job.identity()
    kept = (Identity(records["settings"][record["settings"]], record.get("recipes", {}))
            for record in records["runs"] if record["seed"] == job.seed)
    return any(one.has_settings_of(wanted) if any_version else one.counts_as(wanted)
               for one in kept)


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


def _key(record: dict) -> tuple:
    return tuple(record[name] for name in KEY)


def _hash(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _lines(value: dict | list) -> str:
    if isinstance(value, list):
        return "[\n" + ",\n".join(json.dumps(item) for item in value) + "\n]"
    return "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n}"
