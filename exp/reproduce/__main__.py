"""Run what a table of the paper needs, then write the table, its figure and its verdicts.

python -m exp.reproduce [TABLE ...] [--scale full|mini] [--seeds N] [--workers N] [--list]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from exp.harness.cli import BAD_INPUT, COMPLETED, DIVERGED, FAILED, INTERRUPTED, positive
from exp.harness.errors import ConfigError
from exp.jobs.queue import Job, Stopped, run_jobs, state
from exp.jobs.slurm import add_launcher_options, launcher_of
from exp.reproduce.claims import read_claims
from exp.reproduce.plan import PROTOCOLS, SCALES, Table, read_tables
from exp.reproduce.records import collect, is_done, read_kept, write_kept
from exp.reproduce.report import claims_table, render

OUTPUTS = Path("outputs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0, 2 bad arguments, 1 a run failed, 130 Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        return reproduce(options)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except Stopped:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        print(f"error: cannot write: {error}; every finished run is kept", file=sys.stderr)
        return FAILED


def reproduce(options: argparse.Namespace) -> int:
    """Everything between the arguments and the exit status."""
    tables = read_tables(options.tables)
    configs = sorted({row.config for table in tables for row in table.rows})
    for name in options.only or ():
        if name not in configs:
            raise ConfigError(f"no row has the config {name!r}; there are: {', '.join(configs)}")
    launcher = launcher_of(options, options.outputs / "submitit")
    protocols = PROTOCOLS if options.protocol == "both" else (options.protocol,)
    paper = options.outputs / "paper"
    records = {table.name: collect(table, options.outputs, read_kept(_kept(paper, table)))
               for table in tables}
    missing = {}
    for table in tables:
        for job in jobs(table, options, protocols):
            if not is_done(job, records[table.name], options.any_version):
                missing.setdefault(job.folder, (table, job))
    if options.list:
        print(_listing(tables, [job for _, job in missing.values()], records))
        return COMPLETED
    status = COMPLETED
    if not options.tables_only and missing:
        by_job = {job: table for table, job in missing.values()}

        def keep(job: Job, _: int) -> None:
            table = by_job[job]
            write_kept(_kept(paper, table),
                       collect(table, options.outputs, read_kept(_kept(paper, table))))

        ended = run_jobs(by_job, launcher, keep)
        if any(code not in (COMPLETED, DIVERGED) for code in ended.values()):
            status = FAILED
    for table in tables:
        write_table(table, paper, options.outputs)
    write_verdicts(paper)
    print(f"written to {paper}: {', '.join(table.name for table in tables)}, verdicts.md")
    return status


def jobs(table: Table, options: argparse.Namespace, protocols: Sequence[str]) -> list[Job]:
    """The runs that a table needs, seed by seed, so that an unfinished table is a fair one."""
    scale = table.scale(options.scale)
    seeds = range(1, (options.seeds or table.seeds[scale]) + 1)
    return [table.job(row, seed, scale, protocol, options.outputs)
            for protocol in protocols if protocol in table.protocols
            for seed in seeds for row in table.rows
            if options.only is None or row.config in options.only]


def write_table(table: Table, paper: Path, outputs: Path) -> None:
    """<table>.json from run folders and kept records, and <table>.md and .png from the JSON."""
    from exp.reproduce.figures import draw

    claims = read_claims()
    records = collect(table, outputs, read_kept(_kept(paper, table)))
    write_kept(_kept(paper, table), records)
    records = read_kept(_kept(paper, table))
    (paper / f"{table.name}.md").write_text(render(table, records, claims), encoding="utf-8")
    if records["runs"]:
        draw(paper / f"{table.name}.png", table, records, claims)


def write_verdicts(paper: Path) -> None:
    """verdicts.md: every claim of the paper, from the kept records of all tables."""
    (paper / "verdicts.md").write_text(render_verdicts(paper), encoding="utf-8")


def render_verdicts(paper: Path) -> str:
    """The text of verdicts.md."""
    claims = read_claims()
    parts = ["# Every claim and its verdict",
             "Under the paper's own settings, its untuned baselines among them: a ratio that holds "
             "here may not survive a tuned one. How a verdict is reached: the docstring of "
             "`exp/reproduce/claims.py`. `python -m exp.reproduce TABLE --scale full` runs what is "
             "not yet run, `python -m exp.bench training --full` measures the overheads (a GPU, "
             "or an hour)."]
    tables = {table.name: table for table in read_tables()}
    bench = next((read_kept(path) for path in (
        paper / "bench" / f"training-full_{device}.json" for device in ("cuda", "cpu-bf16", "cpu"))
        if path.exists()), {})
    if bench:
        parts.append(f"Overheads in time and memory: {bench['facts']['processor']}, "
                     f"{bench['facts']['threads']} threads, torch "
                     f"{bench['facts']['versions']['torch']}; each the mean over the models of "
                     "Wikitext-2 and CIFAR-10, and the two.")
    names = list(dict.fromkeys([*tables, *(claim.table for claim in claims)]))
    for name in names:
        own = [claim for claim in claims if claim.table == name]
        if own:
            title = tables[name].title if name in tables else name or "Statements in the text"
            records = read_kept(paper / f"{name}.json")
            parts += [f"## {title}", claims_table(own, tables.get(name), records, bench)]
    return "\n\n".join(parts) + "\n"


def _listing(tables: Sequence[Table], missing: Sequence[Job], records: dict[str, dict]) -> str:
    """What is missing and how long it will take, from measured epochs of the same config."""
    paces = {run["config"] + run["scale"]: run["curve"]["seconds"][-1] / run["epochs"]
             for kept in records.values() for run in kept["runs"]
             if run["curve"].get("seconds")}
    lines, total, unknown = [], 0.0, 0
    for job in missing:
        scale = "mini" if job.folder.parent.name.endswith(("-mini", "-mini-fixed")) else "full"
        pace = paces.get(job.config.stem + scale)
        seconds = None if pace is None else pace * job.settings()["experiment"]["epochs"]
        unknown += seconds is None
        total += seconds or 0.0
        time = "never timed" if seconds is None else f"at most {_duration(seconds)}"
        lines.append(f"{job.name}: {state(job)}, {time}")
    have = sum(len(kept["runs"]) for kept in records.values())
    end = f"{have} runs there, {len(missing)} missing"
    if missing:
        end += f": at most {_duration(total)} of training, one after another"
        end += f", and {unknown} that were never timed" if unknown else ""
    return "\n".join([*lines, end])


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.1f} min"


def _kept(paper: Path, table: Table) -> Path:
    return paper / f"{table.name}.json"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m exp.reproduce",
        description="Run what tables of the paper need and write tables, figures, verdicts.")
    names = ", ".join(table.name for table in read_tables())
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"default: all of {names}")
    parser.add_argument("--scale", choices=SCALES, default="mini",
                        help="full: the paper's sizes; mini (default): two CPU cores")
    parser.add_argument("--protocol", choices=(*PROTOCOLS, "both"), default="both")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="CONFIG,CONFIG",
                        help="run only the rows with these configs (default: all)")
    parser.add_argument("--seeds", type=positive, metavar="N",
                        help="seeds 1 to N (default: the table's own number)")
    parser.add_argument("--workers", type=positive, default=1, metavar="N",
                        help="runs at a time; here they share the cores")
    add_launcher_options(parser)
    parser.add_argument("--any-version", action="store_true",
                        help="accept finished runs of older code instead of running them again")
    held = parser.add_mutually_exclusive_group()
    held.add_argument("--list", action="store_true", help="say what is missing, run nothing")
    held.add_argument("--tables-only", action="store_true",
                      help="write the tables from what is there, run nothing")
    parser.add_argument("--outputs", type=Path, default=OUTPUTS, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
