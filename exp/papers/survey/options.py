"""The options of exp.papers.survey.meta_train, which are read before torch is imported."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from exp.harness.arguments import add_dry_run, positive

OUTPUT = Path("outputs/celo2/weights.json")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options. Ends the process for --help and for wrong ones."""
    parser = argparse.ArgumentParser(prog="python -m exp.papers.survey.meta_train",
                                     description="Train the 347 numbers of Celo2.")
    parser.add_argument("--minutes", type=positive, default=20,
                        help="stop after the generation that ends later than this (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE",
                        help=f"goes on from there, written each generation (default: {OUTPUT})")
    add_dry_run(parser)
    return parser.parse_args(arguments)
