"""Options of the training scripts, exit statuses of every command, types for argparse. Does not
import torch."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

COMPLETED, FAILED, BAD_INPUT, DIVERGED, INTERRUPTED = 0, 1, 2, 3, 130


def parse(task: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options of exp.<task>.train. Exits the process for --help and invalid options."""
    parser = argparse.ArgumentParser(prog=f"python -m exp.{task}.train",
                                     description=f"Train the {task} task from a TOML config.")
    parser.add_argument("--config", type=Path, required=True, help="the experiment, a TOML file")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE",
                        help="override one setting; the value is TOML; table={...} replaces a "
                             "whole table; repeatable")
    parser.add_argument("--unset", action="append", default=[], metavar="TABLE.KEY",
                        help="remove a key or table from the config, before --set; repeatable")
    parser.add_argument("--optimizer", metavar="NAME",
                        help="replace the [optimizer] table by this optimizer's defaults")
    parser.add_argument("--seed", type=int, help="same as --set experiment.seed=N")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"),
                        help="same as --set experiment.device=...")
    parser.add_argument("--output", type=Path, metavar="DIR",
                        help="run folder (default: outputs/<config name>/seed<seed>)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    mode.add_argument("--overwrite", action="store_true", help="replace the run in the folder")
    return parser.parse_args(arguments)


def add_dry_run(parser: argparse._ActionsContainer, *aliases: str) -> None:
    """Add --dry-run: the command lists what it would run and the time that will take, where known
    (exp/report/forecast.py), and runs and writes nothing."""
    parser.add_argument("--dry-run", *aliases, action="store_true",
                        help="list the runs and their expected duration; run nothing")


def positive(text: str) -> int:
    """Parse a positive integer; a type for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def duration(text: str) -> float:
    """Parse a positive, finite number; a type for argparse."""
    if not 0 < (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError("must be a positive number")
    return number
