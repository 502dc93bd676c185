"""The options of exp.site, which are read before torch is imported."""

import argparse
from collections.abc import Sequence
from pathlib import Path

PAPER = Path("outputs/paper")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options. Ends the process for --help and for wrong ones."""
    parser = argparse.ArgumentParser(
        prog="python -m exp.site",
        description="Make the web page of all results, and docs/optimizers, from the committed "
                    "JSON, in some ten seconds; nothing is measured.")
    parser.add_argument("--output", type=Path, default=PAPER / "index.html", metavar="FILE",
                        help=f"default {PAPER / 'index.html'}")
    return parser.parse_args(arguments)
