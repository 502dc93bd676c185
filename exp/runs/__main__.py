"""The runs on this disk: list them, compare some, export their numbers.

python -m exp.runs list [FOLDER ...] [--task cifar] [--state finished] [--sort age] [--json]
python -m exp.runs compare FOLDER FOLDER ... [--axis evaluations|seconds|epochs]
python -m exp.runs export [FOLDER ...] --csv runs.csv

A folder stands for all runs in and beneath it.
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
from exp.runs.records import COLUMNS, Record, find_runs

FILTERS = ("task", "optimizer", "state", "status", "path")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what was asked for; the exit status, 2 for a folder that is not there."""
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
    """Print one line per run: task, optimizer, seed, state, status, epochs, best, age, path."""
    rows = sorted((run.row() for run in runs), reverse=options.reverse, key=lambda row: [
        (row[key] is None, isinstance(row[key], str), row[key])  # numbers, text, None
        for key in (*options.sort, *COLUMNS)])
    if options.json:
        from exp.report.jsonfile import to_json
        print(to_json(rows, depth=1))
        return
    from exp.report.tables import table
    print(table([COLUMNS, *({**row, "age": str(timedelta(seconds=row["age"]))}.values()
                            for row in rows)]))


def compare_runs(runs: list[Record], options: argparse.Namespace) -> None:
    """Print the final numbers of the runs and what differs in their settings; draw the curves."""
    from exp.runs.compare import comparison, draw

    if not runs or len(runs) > len(string.ascii_uppercase):
        raise ConfigError(f"{len(runs)} runs to compare: choose 1 to 26, with --task for example")
    named = dict(zip(string.ascii_uppercase, runs, strict=False))
    print(comparison(named))
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    draw(options.figure, named, options.axis, options.metric)
    print(f"curves: {options.figure}")


def export_runs(runs: list[Record], options: argparse.Namespace) -> None:
    """Write long rows: path, task, optimizer, seed, status, epoch, ..., metric, value."""
    rows = [row for run in runs for row in run.numbers()]
    if options.json:
        from exp.report.jsonfile import write_json
        write_json(options.json, rows, depth=1)
        return
    with open(options.csv, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m exp.runs", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="list|compare|export")
    parsers = {}
    for command in (list_runs, compare_runs, export_runs):
        sub = parsers[command] = commands.add_parser(command.__name__.removesuffix("_runs"),
                                                     description=command.__doc__)
        sub.set_defaults(command=command)
        sub.add_argument("folders", nargs="*", type=Path, default=[Path("outputs")],
                         metavar="FOLDER", help="runs in and beneath it (default: outputs)")
        for key in FILTERS:
            sub.add_argument(f"--{key}", default="*", metavar="GLOB",
                             help=f"only runs whose {key} matches; quote a pattern like 'ars2*'")
    parsers[list_runs].add_argument("--sort", action="append", default=[], choices=COLUMNS,
                                    metavar="COLUMN", help=f"one of {', '.join(COLUMNS)}")
    parsers[list_runs].add_argument("--reverse", action="store_true")
    parsers[list_runs].add_argument("--json", action="store_true", help="JSON instead of a table")
    draw = parsers[compare_runs].add_argument
    draw("--axis", choices=("evaluations", "seconds", "epochs"), default="evaluations",
         help="of the curves (default: evaluations)")
    draw("--metric", action="append", default=[], metavar="NAME",
         help="draw this one; repeatable (default: the losses and the task's metric)")
    draw("--figure", type=Path, default=Path("outputs/compare.png"), metavar="PNG")
    target = parsers[export_runs].add_mutually_exclusive_group(required=True)
    target.add_argument("--csv", type=Path, metavar="FILE")
    target.add_argument("--json", type=Path, metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
