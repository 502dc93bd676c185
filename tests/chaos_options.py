"""The options of tests.chaos, which are read before torch is imported."""

import argparse

from exp.harness.arguments import add_dry_run


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options. Ends the process for --help and for wrong ones."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description="Attack configs, run folders and running processes, each from a seed.")
    parser.add_argument("attacks", nargs="*", metavar="ATTACK",
                        help="default: all, which --dry-run lists")
    parser.add_argument("--seed", type=int, default=0, help="of the first try; the next is one on")
    parser.add_argument("--tries", type=int, help="of each attack")
    parser.add_argument("--minutes", type=float, default=10, help="for all attacks, shared evenly")
    parser.add_argument("--all", action="store_true", help="print every failure as it is found")
    add_dry_run(parser)
    return parser.parse_args(arguments)
