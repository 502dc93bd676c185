"""Command-line options of exp.reproduce, parsed before torch is imported."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from exp.harness.arguments import add_dry_run, positive
from exp.jobs.slurm import add_launcher_options

OUTPUTS = Path("outputs")
SCALES = ("full", "mini")
PROTOCOLS = ("published", "fixed")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options. Exits the process for --help and for invalid options."""
    parser = argparse.ArgumentParser(
        prog="python -m exp.reproduce",
        description="Run the experiments behind papers' tables; write tables and verdicts.")
    parser.add_argument("tables", nargs="*", metavar="TABLE",
                        help="tables to run (default: all; --dry-run lists them)")
    parser.add_argument("--scale", choices=SCALES, default="mini",
                        help="full: the paper's sizes; mini (default): sized for two CPU cores")
    parser.add_argument("--protocol", choices=(*PROTOCOLS, "both"), default="published",
                        help="published (default): keep the original's flaws; fixed: correct them")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="CONFIG,CONFIG",
                        help="run only the rows with these configs (default: all)")
    parser.add_argument("--seeds", type=positive, metavar="N",
                        help="run seeds 1 to N (default: the table's number)")
    parser.add_argument("--workers", type=positive, default=1, metavar="N",
                        help="number of parallel runs; local runs share the cores")
    add_launcher_options(parser)
    parser.add_argument("--until", type=positive, metavar="SECONDS",
                        help="stop after SECONDS; start no run that would end later")
    parser.add_argument("--any-version", action="store_true",
                        help="accept finished runs with outdated RECIPE numbers")
    instead = parser.add_mutually_exclusive_group()
    add_dry_run(instead, "--list")
    instead.add_argument("--plan", type=Path, metavar="FILE",
                         help="write the missing runs as JSON for another machine; run nothing")
    instead.add_argument("--adopt", type=Path, metavar="RESULTS",
                         help="import runs made elsewhere (a folder or tar file of run folders), "
                              "then render")
    instead.add_argument("--render", action="store_true",
                         help="write the pages from the stored records; run nothing")
    parser.add_argument("--outputs", type=Path, default=OUTPUTS, metavar="DIR",
                        help=f"folder of runs and kept records (default: {OUTPUTS}); a new one "
                             "repeats every run, because stored runs are not run again")
    return parser.parse_args(arguments)
