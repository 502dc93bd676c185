"""Command-line options of exp.landscape, parsed before torch is imported."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from exp.harness.arguments import add_dry_run

OUTPUT, PUBLISHED = Path("outputs/landscape"), Path("outputs/paper/landscape")
SHOWN = ("sgd", "adamw", "lion", "muon", "rmsuon", "ada_rmsuon", "ars2_neo", "soap")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options. Exits the process for --help and for invalid options."""
    parser = argparse.ArgumentParser(
        prog="python -m exp.landscape",
        description="Plot trajectories of optimizers on two-dimensional functions.")
    parser.add_argument("--optimizers", default=",".join(SHOWN), metavar="A,B",
                        help=f"optimizers, or all (default: {','.join(SHOWN)})")
    parser.add_argument("--function", metavar="NAME", help="one function (default: all)")
    parser.add_argument("--render", action="store_true",
                        help="write pages and figures from the JSON in --output; measure nothing")
    add_dry_run(parser)
    parser.add_argument("--steps", type=int, default=300, help="number of steps (default: 300)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR",
                        help=f"default: {OUTPUT}; {PUBLISHED} holds the published results")
    return parser.parse_args(arguments)
