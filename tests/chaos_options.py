"""Command-line options of tests.chaos, parsed before torch is imported."""

import argparse

from exp.harness.arguments import add_dry_run


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the options. Exits the process for --help and for invalid options."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description="Attack configs, run folders and running processes, reproducibly by seed.")
    parser.add_argument("attacks", nargs="*", metavar="ATTACK",
                        help="attacks to run (default: all; --dry-run lists them)")
    parser.add_argument("--seed", type=int, default=0,
                        help="seed of the first try; later tries count up (default: 0)")
    parser.add_argument("--tries", type=int, help="number of tries per attack")
    parser.add_argument("--minutes", type=float, default=10,
                        help="total time, shared equally by the attacks (default: 10)")
    parser.add_argument("--all", action="store_true", help="print every failure when it occurs")
    add_dry_run(parser)
    return parser.parse_args(arguments)
