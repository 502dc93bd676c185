"""The command line of every training script: options in, exit status out."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from data import DataError
from exp.harness.config import load_settings
from exp.harness.device import keep_freed_memory
from exp.harness.distributed import (
    from_main,
    is_lost_peer,
    is_main,
    joined,
    restarted,
    together,
)
from exp.harness.errors import ConfigError
from exp.harness.folder import RunFolder
from exp.harness.run import Diverged, Interrupted
from exp.harness.task import Task

COMPLETED, FAILED, BAD_INPUT, DIVERGED, INTERRUPTED = 0, 1, 2, 3, 130


def launch(
    task: Task, train: Callable[[dict, RunFolder], None], arguments: Sequence[str] | None = None
) -> int:
    """Parse the options, check the configuration, train; the exit status.

    0 completed, 2 bad configuration, data, checkpoint or arguments (nothing written),
    3 diverged, 130 interrupted, 1 the disk failed.
    """
    options = _parser(task).parse_args(arguments)
    overrides = list(options.set)
    if options.seed is not None:
        overrides.append(f"experiment.seed={options.seed}")
    if options.device is not None:
        overrides.append(f'experiment.device="{options.device}"')
    keep_freed_memory()
    try:
        settings = load_settings(options.config, overrides, task)
        with joined(settings["experiment"]["device"]):
            status, message = _train(settings, train, options)
            main = is_main()
    except ConfigError as error:  # of every process alike
        status, message, main = BAD_INPUT, f"error: {error}", os.environ.get("RANK", "0") == "0"
    if message and main:
        print(message, file=sys.stderr)
    return status


def _train(settings: dict, train: Callable[[dict, RunFolder], None], options: argparse.Namespace
           ) -> tuple[int, str]:
    """The run itself: exit status and last words."""
    seed = settings["experiment"]["seed"]
    path = options.output or Path("outputs") / options.config.stem / f"seed{seed}"
    try:
        resume = options.resume or restarted()
        of_main = from_main(lambda: settings)
        with together():
            if settings != of_main:
                raise ConfigError("this process has other settings than the main one")
            folder = RunFolder(path, resume, not resume and options.overwrite)
        train(settings, folder)
    except (ConfigError, DataError) as error:
        return BAD_INPUT, f"error: {error}"
    except Diverged as error:
        return DIVERGED, f"diverged: {error}; recorded in {path}"
    except (Interrupted, KeyboardInterrupt):
        return INTERRUPTED, f"interrupted; the same command with --resume continues {path}"
    except BrokenPipeError:
        return FAILED, f"error: nobody reads the output any more; --resume continues {path}"
    except OSError as error:
        return FAILED, (f"error: cannot write {path}: {error}; what was written before is"
                        " whole, --resume continues from the last checkpoint")
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        return FAILED, (f"error: another process of this run is gone; {path} is whole,"
                        " --resume continues from the last checkpoint")
    return COMPLETED, ""


def positive(text: str) -> int:
    """A whole number from 1 on, as a type for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _parser(task: Task) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m exp.{task.name}.train",
                                     description=f"Train the {task.name} task from a TOML config.")
    parser.add_argument("--config", type=Path, required=True, help="the experiment, a TOML file")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE",
                        help="override one setting, the value in TOML syntax; repeatable")
    parser.add_argument("--seed", type=int, help="same as --set experiment.seed=N")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--output", type=Path, metavar="DIR",
                        help="run folder (default: outputs/<config name>/seed<seed>)")
    held = parser.add_mutually_exclusive_group()
    held.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    held.add_argument("--overwrite", action="store_true", help="replace the run in the folder")
    return parser
