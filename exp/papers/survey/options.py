"""Command-line options of exp.papers.survey.meta_train, parsed before torch is imported."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from exp.harness.arguments import add_dry_run, positive

OUTPUT = Path("outputs/celo2/weights.json")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options. Exits the process for --help and for invalid options."""
    parser = argparse.ArgumentParser(prog="python -m exp.papers.survey.meta_train",
                                     description="Train Celo2's numbers by evolution strategies.")
    parser.add_argument("--minutes", type=positive, default=20,
                        help="stop after the first generation that ends later (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE",
                        help=f"continue from FILE, rewritten per generation (default: {OUTPUT})")
    add_dry_run(parser)
    return parser.parse_args(arguments)
