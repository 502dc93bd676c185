"""The options of exp.reproduce, which are read before torch is imported."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from exp.harness.arguments import add_dry_run, positive
from exp.jobs.slurm import add_launcher_options

OUTPUTS = Path("outputs")
SCALES = ("full", "mini")
PROTOCOLS = ("published", "fixed")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options. Ends the process for --help and for wrong ones."""
    parser = argparse.ArgumentParser(
        prog="python -m exp.reproduce",
        description="Run what tables of papers need and write tables, figures, verdicts.")
    parser.add_argument("tables", nargs="*", metavar="TABLE",
                        help="default: all, which --dry-run names")
    parser.add_argument("--scale", choices=SCALES, default="mini",
                        help="full: the paper's sizes; mini (default): two CPU cores")
    parser.add_argument("--protocol", choices=(*PROTOCOLS, "both"), default="published",
                        help="published (default): with the original's flaws; fixed: without")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="CONFIG,CONFIG",
                        help="run only the rows with these configs (default: all)")
    parser.add_argument("--seeds", type=positive, metavar="N",
                        help="seeds 1 to N (default: the table's own number)")
    parser.add_argument("--workers", type=positive, default=1, metavar="N",
                        help="runs at a time; here they share the cores")
    add_launcher_options(parser)
    parser.add_argument("--until", type=positive, metavar="SECONDS",
                        help="start no run that would not end by then, and stop then")
    parser.add_argument("--any-version", action="store_true",
                        help="accept finished runs of any RECIPE instead of running them again")
    instead = parser.add_mutually_exclusive_group()
    add_dry_run(instead, "--list")
    instead.add_argument("--plan", type=Path, metavar="FILE",
                         help="write the missing runs as JSON for another machine, run nothing")
    instead.add_argument("--adopt", type=Path, metavar="RESULTS",
                         help="take runs made elsewhere, a folder or tar file of run folders, into "
                              "the records, and render")
    instead.add_argument("--render", action="store_true",
                         help="write the pages from the records that are there, run nothing")
    parser.add_argument("--outputs", type=Path, default=OUTPUTS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)
