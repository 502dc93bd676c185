"""The options of exp.landscape, which are read before torch is imported."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from exp.harness.arguments import add_dry_run

OUTPUT, PUBLISHED = Path("outputs/landscape"), Path("outputs/paper/landscape")
SHOWN = ("sgd", "adamw", "lion", "muon", "rmsuon", "ada_rmsuon", "ars2_neo", "soap")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options. Ends the process for --help and for wrong ones."""
    parser = argparse.ArgumentParser(
        prog="python -m exp.landscape",
        description="Paths of optimizers over functions of two coordinates.")
    parser.add_argument("--optimizers", default=",".join(SHOWN), metavar="A,B",
                        help=f"names, or all (default: {','.join(SHOWN)})")
    parser.add_argument("--function", metavar="NAME", help="default: all of them")
    parser.add_argument("--render", action="store_true",
                        help="make pages and pictures from the JSON in --output, measure nothing")
    add_dry_run(parser)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR",
                        help=f"default {OUTPUT}; {PUBLISHED} are the published results")
    return parser.parse_args(arguments)
