"""A launcher that trains in this process, one run after another: what is compiled, or read, for
one run serves the next."""

import contextlib
from collections.abc import Sequence

from exp.harness.cli import launch
from exp.harness.lock import holder
from exp.harness.task import task_named, train_function
from exp.jobs.launch import Orphan, Process, Work


class Ended:
    """Work that has ended with an exit status."""

    def __init__(self, status: int) -> None:
        self.status = status

    def poll(self) -> int:
        """The exit status."""
        return self.status

    def terminate(self) -> None:
        """Nothing: it has ended."""

    def kill(self) -> None:
        """Nothing: it has ended."""


class Here:
    """Runs work to its end when it is started; the commands must be those of training scripts."""

    capacity = 1

    def find(self, folder) -> Process | None:
        """The process that has locked the folder."""
        return Orphan(folder) if holder(folder) else None

    def start(self, works: Sequence[Work]) -> list[Process]:
        """Train them all, in this order; the output goes to their logs."""
        return [Ended(_train(work)) for work in works]


def _train(work: Work) -> int:
    module, arguments = work.command[2], work.command[3:]
    name = module.removeprefix("exp.").removesuffix(".train")
    work.folder.mkdir(parents=True, exist_ok=True)
    with open(work.log, "a", encoding="utf-8") as log, contextlib.redirect_stdout(log), \
            contextlib.redirect_stderr(log):
        return launch(task_named(name), train_function(name), arguments)
