"""A launcher that trains in this process, one run after another. Later runs reuse the compiled code
and the data of earlier ones."""

import contextlib
import traceback
from collections.abc import Sequence

from exp.harness.arguments import FAILED
from exp.harness.cli import launch
from exp.harness.lock import holder
from exp.harness.task import task_named, train_function
from exp.jobs.launch import Orphan, Process, Work


class Ended:
    """The process of work that has ended."""

    def __init__(self, status: int) -> None:
        self.status = status

    def poll(self) -> int:
        """Return the exit status."""
        return self.status

    def terminate(self) -> None:
        """Do nothing: the work has ended."""

    def kill(self) -> None:
        """Do nothing: the work has ended."""


class Here:
    """Trains inside `start`, which returns when all work has ended. The commands must be those of
    training scripts."""

    capacity = 1

    def find(self, folder) -> Process | None:
        """Return the process that has locked the folder, None if it is free."""
        return Orphan(folder) if holder(folder) else None

    def start(self, works: Sequence[Work]) -> list[Process]:
        """Train all work in order; the output goes to its logs."""
        return [Ended(_train(work)) for work in works]


def _train(work: Work) -> int:
    """Train; return the exit status. An exception, such as a missing compiler or a GPU out of
    memory, goes to the log and fails this run alone."""
    module, arguments = work.command[2], work.command[3:]
    name = module.removeprefix("exp.").removesuffix(".train")
    work.folder.mkdir(parents=True, exist_ok=True)
    with open(work.log, "a", encoding="utf-8") as log, contextlib.redirect_stdout(log), \
            contextlib.redirect_stderr(log):
        try:
            return launch(task_named(name), train_function(name), arguments)
        except Exception:
            traceback.print_exc()
            return FAILED
