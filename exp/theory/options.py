"""The options of exp.theory, which are read before torch is imported."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from exp.harness.arguments import add_dry_run

OUTPUT, PUBLISHED = Path("outputs/theory"), Path("outputs/paper/theory")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options. Ends the process for --help and for wrong ones."""
    parser = argparse.ArgumentParser(
        prog="python -m exp.theory",
        description="The experiment behind each statement of a paper, and a verdict.")
    parser.add_argument("names", nargs="*", metavar="STATEMENT", help="default: all")
    parser.add_argument("--render", action="store_true",
                        help="make pages and figures from the JSON in --output, measure nothing")
    parser.add_argument("--list", action="store_true", help="name the statements")
    add_dry_run(parser)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR",
                        help=f"default {OUTPUT}; {PUBLISHED} are the published results")
    return parser.parse_args(arguments)
