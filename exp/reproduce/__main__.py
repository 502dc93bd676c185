"""Run the missing runs of a paper's tables, then write the tables, figures and verdicts.

python -m exp.reproduce [TABLE ...] [--scale full|mini]
                        [--dry-run | --plan FILE | --adopt RESULTS | --render]
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from exp.reproduce.options import PROTOCOLS, parse

if __name__ == "__main__":
    parse()  # answers --help and mistyped options before torch is imported

from exp.harness.arguments import BAD_INPUT, COMPLETED, DIVERGED, FAILED, INTERRUPTED
from exp.harness.errors import ConfigError
from exp.jobs.deadline import InTime, stopped_after
from exp.jobs.queue import Job, Stopped, run_jobs
from exp.jobs.slurm import launcher_of
from exp.reproduce.adopt import adopt
from exp.reproduce.claims import Claim
from exp.reproduce.outlook import Outlook
from exp.reproduce.papers import read_papers, select_tables
from exp.reproduce.plan import Table
from exp.reproduce.records import collect, is_done, keep_finished, kept_path, read_kept
from exp.reproduce.report import render
from exp.reproduce.verdicts import render_verdicts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0, 1 if a run failed, 2 for bad arguments, 130
    after Ctrl-C."""
    try:
        return reproduce(parse(arguments))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except Stopped:
        print("interrupted; the same command continues from here", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        print(f"error: cannot write: {error}; every finished run is kept", file=sys.stderr)
        return FAILED


def reproduce(options: argparse.Namespace) -> int:
    """Do what the options say. Returns the exit status; raises ConfigError for unknown names or
    damaged records, OSError if a file cannot be written, Stopped after Ctrl-C."""
    papers = read_papers()
    tables = select_tables(papers, options.tables)
    _check_configs(options.only or (), tables)
    kept = options.outputs / "paper"
    if options.adopt:
        print("\n".join(adopt(options.adopt, tables, options.outputs)))
    records = {table.name: _collected(table, options.outputs) for table in tables}
    only_pages = options.render or options.adopt
    missing = {} if only_pages else _missing(tables, records, options)
    if options.dry_run:
        print(Outlook(records).listing(missing))
        return COMPLETED
    if options.plan:
        options.plan.write_text(Outlook(records).plan(missing), encoding="utf-8")
        print(f"{len(missing)} runs planned in {options.plan}")
        return COMPLETED
    if missing:
        print(Outlook(records).total(missing), flush=True)
    status = _run(missing, options) if missing else COMPLETED
    kept.mkdir(parents=True, exist_ok=True)
    claims = [claim for paper in papers for claim in paper.claims]
    written = [table.name for table in tables if write_table(table, claims, options.outputs)]
    (kept / "verdicts.md").write_text(render_verdicts(papers, kept), encoding="utf-8")
    print(f"written to {kept}: {', '.join([*written, 'verdicts.md'])}")
    return status


def jobs(table: Table, options: argparse.Namespace) -> list[Job]:
    """The runs that a table needs, in order of seeds, so that the rows of an unfinished table have
    nearly equal numbers of runs."""
    scale = table.scale(options.scale)
    seeds = range(1, (options.seeds or table.seeds[scale]) + 1)
    return [table.job(row, seed, cell, options.outputs)
            for protocol in PROTOCOLS if options.protocol in (protocol, "both") for seed in seeds
            for cell in table.cells_to_run(scale, protocol) for row in table.rows
            if options.only is None or row.config in options.only]


def write_table(table: Table, claims: Iterable[Claim], outputs: Path) -> bool:
    """Write <table>.json from run folders and kept records, unless it has the same runs already,
    and <table>.md and .png from the JSON. Returns whether the table has any run; without one,
    nothing is written."""
    from exp.reproduce.figures import draw

    path = kept_path(table, outputs)
    of_table = [claim for claim in claims if claim.table == table.name]
    records = keep_finished(table, outputs, path)
    if not records["runs"]:
        return False
    path.with_suffix(".md").write_text(render(table, records, of_table), encoding="utf-8")
    draw(path.with_suffix(".png"), table, records, of_table)
    return True


def _missing(tables: Sequence[Table], records: dict[str, dict], options: argparse.Namespace
             ) -> dict[Job, Table]:
    """The missing runs and their tables; a run that two tables need counts for the first."""
    missing: dict[Path, tuple[Job, Table]] = {}
    for table in tables:
        for job in jobs(table, options):
            if not is_done(job, records[table.name], options.any_version):
                missing.setdefault(job.folder, (job, table))
    return dict(missing.values())


def _run(missing: dict[Job, Table], options: argparse.Namespace) -> int:
    """Run the missing runs and keep the record of each when it ends. Returns the exit status."""
    launcher = launcher_of(options, options.outputs / "submitit")
    by_folder = {job.folder: job for job in missing}

    def keep(job: Job, _: int) -> None:
        keep_finished(missing[job], options.outputs, kept_path(missing[job], options.outputs))

    def seconds(folder: Path) -> float | None:
        job = by_folder[folder]
        kept = read_kept(kept_path(missing[job], options.outputs))
        return Outlook({missing[job].name: kept}).seconds(job)

    if options.until is not None:
        launcher = InTime(launcher, options.until, seconds)
    with stopped_after(options.until):
        statuses = run_jobs(missing, launcher, keep)
    others = set(statuses.values()) - {COMPLETED, DIVERGED}
    if others - {INTERRUPTED}:
        return FAILED
    return INTERRUPTED if others else COMPLETED


def _check_configs(names: Iterable[str], tables: Sequence[Table]) -> None:
    configs = sorted({row.config for table in tables for row in table.rows})
    for name in names:
        if name not in configs:
            raise ConfigError(f"unknown config {name!r}; available: {', '.join(configs)}")


def _collected(table: Table, outputs: Path) -> dict:
    return collect(table, outputs, read_kept(kept_path(table, outputs)))


if __name__ == "__main__":
    sys.exit(main())
