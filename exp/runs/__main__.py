"""List, compare and export the runs on this disk.

python -m exp.runs list [FOLDER ...] [--task cifar] [--state finished] [--sort age] [--json]
python -m exp.runs compare FOLDER FOLDER ... [--axis evaluations|seconds|epochs]
python -m exp.runs export [FOLDER ...] --csv runs.csv

A folder stands for all runs in it and beneath it.
"""

import argparse
import csv
import os
import string
import sys
from collections.abc import Sequence
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path

from exp.harness.errors import ConfigError
from exp.report.jsonfile import to_json, write_json
from exp.report.tables import table
from exp.runs.compare import AXES, comparison, draw
from exp.runs.records import COLUMNS, Record, find_runs

FILTERS = ("task", "optimizer", "state", "status", "path")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status, 2 for a missing folder."""
    options = _parser().parse_args(arguments)
    try:
        runs = [run for run in find_runs(options.folders) if all(
            fnmatchcase(str(run.row()[key]), getattr(options, key)) for key in FILTERS)]
        for path in (run.path / name for run in runs for name in run.damaged):
            print(f"damaged or missing: {path}", file=sys.stderr)
        options.command(runs, options)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def list_runs(runs: list[Record], options: argparse.Namespace) -> None:
    """Print one line per run: task, optimizer, seed, state, status, epochs, metric, best, age,
    path."""
    rows = sorted((run.row() for run in runs), reverse=options.reverse, key=lambda row: [
        (row[key] is None, isinstance(row[key], str), row[key])  # numbers, text, None
        for key in (*options.sort, *COLUMNS)])
    text = [COLUMNS, *(tuple({**row, "age": str(timedelta(seconds=row["age"]))}.values())
                       for row in rows)]
    print(to_json(rows, depth=1) if options.json else table(text))


def compare_runs(runs: list[Record], options: argparse.Namespace) -> None:
    """Print the final numbers of the runs and the settings that differ; draw the curves."""
    if not runs or len(runs) > len(string.ascii_uppercase):
        raise ConfigError(f"cannot compare {len(runs)} runs: choose 1 to 26, e.g. with --task")
    named = dict(zip(string.ascii_uppercase, runs, strict=False))
    print(comparison(named))
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    draw(options.figure, named, options.axis, options.metric)
    print(f"curves: {options.figure}")


def export_runs(runs: list[Record], options: argparse.Namespace) -> None:
    """Write one row per number (long format): path, task, optimizer, seed, status, epoch, ...,
    metric, value."""
    rows = [row for run in runs for row in run.numbers()]
    if options.json:
        return write_json(options.json, rows, depth=1)
    with open(options.csv, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m exp.runs", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="list|compare|export")
    add = {}
    for command in (list_runs, compare_runs, export_runs):
        sub = commands.add_parser(command.__name__.removesuffix("_runs"),
                                  description=command.__doc__)
        sub.set_defaults(command=command)
        add[command] = sub.add_argument
        sub.add_argument("folders", nargs="*", type=Path, default=[Path("outputs")],
                         metavar="FOLDER",
                         help="folders searched recursively for runs (default: outputs)")
        for key in FILTERS:
            sub.add_argument(f"--{key}", default="*", metavar="GLOB",
                             help=f"keep runs whose {key} matches; quote a pattern like 'ars2*'")
    add[list_runs]("--sort", action="append", default=[], choices=COLUMNS, metavar="COLUMN",
                   help=f"sort by this column, one of {', '.join(COLUMNS)}; repeatable")
    add[list_runs]("--reverse", action="store_true", help="sort in descending order")
    add[list_runs]("--json", action="store_true", help="print JSON instead of a table")
    add[compare_runs]("--axis", choices=AXES, default="evaluations",
                      help="x axis of the curves (default: evaluations)")
    add[compare_runs]("--metric", action="append", default=[], metavar="NAME",
                      help="metric to draw; repeatable (default: losses and the task's metric)")
    add[compare_runs]("--figure", type=Path, default=Path("outputs/compare.png"), metavar="PNG",
                      help="file of the curves (default: outputs/compare.png)")
    target = sub.add_mutually_exclusive_group(required=True)
    target.add_argument("--csv", type=Path, metavar="FILE", help="write CSV to FILE")
    target.add_argument("--json", type=Path, metavar="FILE", help="write JSON to FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
