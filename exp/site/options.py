"""Command-line options of exp.site, parsed before torch is imported."""

import argparse
from collections.abc import Sequence
from pathlib import Path

PAPER = Path("outputs/paper")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options. Exits the process for --help and for invalid options."""
    parser = argparse.ArgumentParser(
        prog="python -m exp.site",
        description="Write the web page of results from the committed JSON, docs/optimizers and "
                    "docs/config.md. Takes about ten seconds; measures nothing.")
    parser.add_argument("--output", type=Path, default=PAPER / "index.html", metavar="FILE",
                        help=f"default: {PAPER / 'index.html'}")
    return parser.parse_args(arguments)
