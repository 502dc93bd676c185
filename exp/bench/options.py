"""Command-line options of exp.bench, parsed before torch is imported."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from exp.harness.arguments import add_dry_run, positive

PARTS = ("steps", "polar", "training", "instruments", "sharding", "smoke")
BY_DEFAULT = PARTS[:-2]
OUTPUT, PUBLISHED = Path("outputs/bench"), Path("outputs/paper/bench")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options. Exits the process for --help and for invalid options."""
    parser = argparse.ArgumentParser(
        prog="python -m exp.bench",
        description="Benchmark our optimizers against torch's and other libraries'.")
    parser.add_argument("parts", nargs="*", metavar="PART", type=_part,
                        help=f"any of {', '.join(PARTS)} (default: {', '.join(BY_DEFAULT)})")
    parser.add_argument("--render", action="store_true",
                        help="write page and figures from the JSON in --output; measure nothing")
    add_dry_run(parser)
    parser.add_argument("--rounds", type=positive, default=15, metavar="N",
                        help="interleaved rounds (default: 15)")
    parser.add_argument("--clock", choices=("wall", "thread"), default="wall",
                        help="wall-clock time (default) or processor time of the thread")
    parser.add_argument("--full", action="store_true",
                        help="part training: use the paper's models; results go to a separate file")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR",
                        help=f"default: {OUTPUT}; {PUBLISHED} holds the published results")
    return parser.parse_args(arguments)


def _part(name: str) -> str:
    if name not in PARTS:
        raise argparse.ArgumentTypeError(f"unknown part {name!r}; known: {', '.join(PARTS)}")
    return name


def parse_collection(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options. Exits the process for --help and for invalid options."""
    parser = argparse.ArgumentParser(prog="python -m exp.bench.collection",
                                     description="Train briefly with every optimizer.")
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help="optimizers to train with (default: all)")
    parser.add_argument("--workers", type=positive, default=1, metavar="N",
                        help="number of parallel runs")
    parser.add_argument("--render", action="store_true",
                        help="write the page from the JSON in --output; run nothing")
    add_dry_run(parser)
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR",
                        help=f"default: {OUTPUT}; {PUBLISHED} holds the published results")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)
