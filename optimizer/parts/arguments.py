"""The options of `python -m optimizer`, which are read before torch is imported."""

import argparse


def parse() -> argparse.Namespace:
    """The options. Ends the process for --help and for wrong ones."""
    parser = argparse.ArgumentParser(prog="python -m optimizer")
    parser.add_argument("name", nargs="?", help="an optimizer's name; all of them without it")
    parser.add_argument("--library", metavar="PACKAGE",
                        help='take steps with every class of a library, as "PACKAGE:Class" would')
    return parser.parse_args()
