"""The options of exp.bench, which are read before torch is imported."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from exp.harness.arguments import add_dry_run

PARTS = ("steps", "polar", "training", "instruments", "sharding", "smoke")
BY_DEFAULT = PARTS[:-2]
OUTPUT, PUBLISHED = Path("outputs/bench"), Path("outputs/paper/bench")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options. Ends the process for --help and for wrong ones."""
    parser = argparse.ArgumentParser(
        prog="python -m exp.bench",
        description="What optimizers cost, beside torch's and libraries', interleaved.")
    parser.add_argument("parts", nargs="*", metavar="PART", type=_part,
                        help=f"of {', '.join(PARTS)}; default: {', '.join(BY_DEFAULT)}")
    parser.add_argument("--render", action="store_true",
                        help="make the page and the figures from the JSON in --output")
    add_dry_run(parser)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clock", choices=("wall", "thread"), default="wall")
    parser.add_argument("--full", action="store_true",
                        help="training: the models of the paper, in a file of their own")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR",
                        help=f"default {OUTPUT}; {PUBLISHED} are the published results")
    return parser.parse_args(arguments)


def _part(name: str) -> str:
    if name not in PARTS:
        raise argparse.ArgumentTypeError(f"unknown part {name!r}; known: {', '.join(PARTS)}")
    return name


def parse_collection(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of exp.bench.collection. Ends the process for --help and for wrong ones."""
    parser = argparse.ArgumentParser(prog="python -m exp.bench.collection",
                                     description="Train with every optimizer for a short while.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: the whole collection")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--render", action="store_true",
                        help="make the page from the JSON in --output, run nothing")
    add_dry_run(parser)
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR",
                        help=f"default {OUTPUT}; {PUBLISHED} are the published results")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)
