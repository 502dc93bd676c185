"""Command-line options of `python -m optimizer`, parsed before torch is imported."""

import argparse


def parse() -> argparse.Namespace:
    """Parse the command line. Exits the process for --help and for invalid options."""
    parser = argparse.ArgumentParser(
        prog="python -m optimizer", description="List the optimizers, or describe one.")
    parser.add_argument("name", nargs="?", help="an optimizer (default: list all)")
    parser.add_argument("--library", metavar="PACKAGE",
                        help='test which classes of a library work as name = "PACKAGE:Class"')
    return parser.parse_args()
