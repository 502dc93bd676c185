"""The options of exp.papers.ladder.analysis, which are read before torch is imported."""

import argparse
from collections.abc import Sequence
from pathlib import Path

OUTPUT = Path("outputs/paper/ladder")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options. Ends the process for --help and for wrong ones."""
    parser = argparse.ArgumentParser(prog="python -m exp.papers.ladder.analysis",
                                     description="The rows, page and figures of the ladder.")
    parser.add_argument("--collect", type=Path, metavar="FOLDER", help="the run folders")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR",
                        help=f"of rows.json and ladder.md (default: {OUTPUT})")
    return parser.parse_args(arguments)
