"""Command-line options of exp.papers.ladder.analysis, parsed before torch is imported."""

import argparse
from collections.abc import Sequence
from pathlib import Path

OUTPUT = Path("outputs/paper/ladder")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options. Exits the process for --help and for invalid options."""
    parser = argparse.ArgumentParser(prog="python -m exp.papers.ladder.analysis",
                                     description="Write the rows, page and figures of the ladder.")
    parser.add_argument("--collect", type=Path, metavar="FOLDER",
                        help="collect rows from the run folders in FOLDER first")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR",
                        help=f"folder of rows.json and ladder.md (default: {OUTPUT})")
    return parser.parse_args(arguments)
