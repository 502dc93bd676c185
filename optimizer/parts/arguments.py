"""Command-line options of `python -m optimizer`, parsed before torch is imported."""

import argparse


def parse() -> argparse.Namespace:
    """Parse the command line. Exits the process for --help and for invalid options."""
    parser = argparse.ArgumentParser(prog="python -m optimizer")
    parser.add_argument("name", nargs="?", help="an optimizer's name; all of them without it")
    parser.add_argument("--library", metavar="PACKAGE",
                        help='take steps with every class of a library, as "PACKAGE:Class" would')
    return parser.parse_args()
