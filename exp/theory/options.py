"""Command-line options of exp.theory, parsed before torch is imported."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from exp.harness.arguments import add_dry_run

OUTPUT, PUBLISHED = Path("outputs/theory"), Path("outputs/paper/theory")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options. Exits the process for --help and for invalid options."""
    parser = argparse.ArgumentParser(
        prog="python -m exp.theory",
        description="Run the experiments that test papers' statements; write verdicts.")
    parser.add_argument("names", nargs="*", metavar="STATEMENT",
                        help="statements to test (default: all)")
    parser.add_argument("--render", action="store_true",
                        help="write pages and figures from the JSON in --output; measure nothing")
    parser.add_argument("--list", action="store_true", help="list the statements")
    add_dry_run(parser)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR",
                        help=f"default: {OUTPUT}; {PUBLISHED} holds the published results")
    return parser.parse_args(arguments)
