"""The command line of every training script: options in, exit status out."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from data import DataError
from exp.harness.arguments import BAD_INPUT, COMPLETED, DIVERGED, FAILED, INTERRUPTED, parse
from exp.harness.config import load_settings
from exp.harness.distributed import (
    from_main,
    is_lost_peer,
    is_main,
    joined,
    together,
)
from exp.harness.errors import ConfigError
from exp.harness.facts import is_of_this_torchrun
from exp.harness.folder import RunFolder
from exp.harness.output import tolerant_output
from exp.harness.run import Diverged, Interrupted
from exp.harness.task import Task


def launch(
    task: Task, train: Callable[[dict, RunFolder], None], arguments: Sequence[str] | None = None
) -> int:
    """Parse the options, check the configuration, train, and return the exit status.

    0 completed, 2 bad configuration, data, checkpoint or arguments (nothing written),
    3 diverged, 130 interrupted, 1 the disk failed.
    """
    options = parse(task.name, arguments)
    with tolerant_output():
        return _launch(task, train, options)


def _launch(task: Task, train: Callable[[dict, RunFolder], None], options: argparse.Namespace
            ) -> int:
    overrides = list(options.set)
    if options.seed is not None:
        overrides.append(f"experiment.seed={options.seed}")
    if options.device is not None:
        overrides.append(f'experiment.device="{options.device}"')
    try:
        settings = load_settings(options.config, overrides, task, unset=options.unset,
                                 optimizer=options.optimizer)
        with joined(settings["experiment"]["device"]):
            status, message = _train(settings, train, options)
            main = is_main()
    except ConfigError as error:  # the same on every process
        status, message, main = BAD_INPUT, f"error: {error}", os.environ.get("RANK", "0") == "0"
    if message and main:
        print(message, file=sys.stderr)
    return status


def _train(settings: dict, train: Callable[[dict, RunFolder], None], options: argparse.Namespace
           ) -> tuple[int, str]:
    """Train. Returns the exit status and a final message, which may be empty."""
    seed = settings["experiment"]["seed"]
    path = options.output or Path("outputs") / options.config.stem / f"seed{seed}"
    checkpoints = settings["experiment"]["checkpoints"]
    continued = ("--resume continues" if checkpoints
                 else "--overwrite (checkpoints = false) restarts")
    try:
        # A restart by torchrun continues what this command began, whatever its options.
        of_main, begun = from_main(lambda: (settings, is_of_this_torchrun(path)))
        resume = options.resume or begun and checkpoints
        with together():
            if settings != of_main:
                raise ConfigError("the settings of this process differ from those of rank 0")
            folder = RunFolder(path, resume, not resume and (options.overwrite or begun))
        train(settings, folder)
    except (ConfigError, DataError) as error:
        return BAD_INPUT, f"error: {error}"
    except Diverged as error:
        return DIVERGED, f"diverged: {error}; recorded in {path}"
    except (Interrupted, KeyboardInterrupt):
        return INTERRUPTED, f"interrupted; the same command with {continued} {path}"
    except OSError as error:
        return FAILED, (f"error: cannot write {path}: {error}; the same command with {continued} "
                        "the run")
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        return FAILED, ("error: another process of this run has died; the same command with "
                        f"{continued} the run")
    return COMPLETED, ""
