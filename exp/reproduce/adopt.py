"""Import runs made on another machine, for example a rented GPU, into the kept records.

Each run is checked completely before it is copied. Nothing that its files name is imported or run.
"""

import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from exp.harness.errors import ConfigError
from exp.harness.folder import parsed
from exp.harness.task import task_named
from exp.harness.toml import read_toml
from exp.jobs.freshness import Identity, folder_identity
from exp.jobs.queue import Job
from exp.reproduce.plan import Table
from exp.reproduce.records import is_done, keep_finished, kept_path, read_kept

FILES = ("config.toml", "run.json", "metrics.jsonl", "summary.json")
FACTS = ("device", "threads", "versions", "commit", "uncommitted_changes")  # required in run.json
LARGEST = 2**26  # bytes per file, enough for metrics.jsonl of some 100,000 epochs

Wanted = Sequence[tuple[Table, Job, Identity]]


class NotTaken(Exception):
    """A run is not imported; the text says why."""


def adopt(results: Path, tables: Sequence[Table], outputs: Path) -> list[str]:
    """Add the runs in `results` that belong to a table to its kept records. Returns one line per
    run that says what became of it.

    results: a folder or a tar file of run folders. Raises ConfigError if it is neither.
    """
    lines, changed = [], set()
    with _unpacked(results) as root, tempfile.TemporaryDirectory() as scratch:
        jobs = [(table, table.job(row, 0, cell, Path(scratch)))
                for table in tables for cell in table.cells() for row in table.rows]
        wanted = [(table, job, job.identity()) for table, job in jobs]
        for folder in sorted({path.parent for path in root.rglob("*") if path.name in FILES}):
            name = folder.relative_to(root).as_posix()
            try:
                taken = _take(folder, wanted, outputs)
                changed |= set(taken)
                lines.append(f"{name}: imported into {', '.join(taken)}")
            except NotTaken as reason:
                lines.append(f"{name}: not imported: {reason}")
        for table in (table for table in tables if table.name in changed):
            keep_finished(table, Path(scratch), kept_path(table, outputs))
    return lines


def _take(folder: Path, wanted: Wanted, outputs: Path) -> list[str]:
    """Copy a run to the folders of its tables and return the tables' names. Raises NotTaken."""
    seed = _checked(folder)
    identities = {task: folder_identity(folder, task_named(task))
                  for task in {job.task for _, job, _ in wanted}}
    same = [(table, job) for table, job, identity in wanted
            if identities[job.task].has_settings_of(identity)]
    current = [(table, job) for table, job in same
               if identities[job.task].counts_as(job.identity())]
    if not current:
        raise NotTaken("it ran with other RECIPE numbers" if same else
                       "no table has a run with these settings")
    missing = [(table, place) for table, job in current
               if not is_done(place := replace(job, seed=seed), _kept(table, outputs), False)]
    if not missing:
        raise NotTaken("this run is already in the records")
    for _, job in missing:
        target = job.folder.with_name(f"seed{seed}")
        target.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copy(folder / name, target)
    return [table.name for table, _ in missing]


def _kept(table: Table, outputs: Path) -> dict:
    return read_kept(kept_path(table, outputs))


def _checked(folder: Path) -> int:
    """Check that a run has ended and that its files agree; return its seed. Raises NotTaken."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise NotTaken(f"missing {', '.join(missing)}")
    try:
        facts, summary = (parsed((folder / name).read_text(encoding="utf-8"))
                          for name in ("run.json", "summary.json"))
        lines = [parsed(line) for line in
                 (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        seed = read_toml(folder / "config.toml")["experiment"]["seed"]
        _check_agreement(seed, facts, summary, lines)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise NotTaken(f"its files are damaged: {type(error).__name__}: {error}") from error
    return seed


def _check_agreement(seed: int, facts: dict, summary: dict, lines: list[dict]) -> None:
    if summary["status"] not in ("completed", "diverged"):
        raise NotTaken(f"its status is {summary['status']}")
    if summary["seed"] != seed:
        raise NotTaken(f"seed {summary['seed']} in summary.json, {seed} in config.toml")
    if [line["epoch"] for line in lines] != list(range(1, summary["epochs"] + 1)):
        raise NotTaken(f"metrics.jsonl lacks some of the {summary['epochs']} epochs in its summary")
    if any(summary["final"][key] != lines[-1].get(key) for key in summary["final"]):
        raise NotTaken("the last line of metrics.jsonl differs from summary.json")
    unknown = [key for key in FACTS if facts.get(key) is None]
    if unknown:
        raise NotTaken(f"run.json lacks {', '.join(unknown)}")


@contextmanager
def _unpacked(results: Path) -> Iterator[Path]:
    """A folder with the run folders: `results` itself, or a temporary one with the FILES of a tar
    file."""
    if results.is_dir():
        yield results
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            with tarfile.open(results) as tar:
                for member in tar:
                    if member.isfile() and Path(member.name).name in FILES:
                        if member.size > LARGEST:
                            raise ConfigError(f"{results}: {member.name} has more than "
                                              f"{LARGEST // 2**20} MiB")
                        tar.extract(member, folder, filter="data")
        except (OSError, tarfile.TarError) as error:
            raise ConfigError(f"cannot read {results}: {error}") from error
        yield Path(folder)
