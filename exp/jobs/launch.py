"""Launchers: where commands are run. Here: processes of this machine; slurm.py: Slurm jobs."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from exp.harness.errors import ConfigError
from exp.harness.lock import INHERITED, acquire, holder, local_process, name_holder

STOP_SECONDS = 60.0  # for a run to finish its step and write a checkpoint
ASK_SECONDS = 5.0  # after which the signal is sent again: the run may have been starting
LOG = "train.log"


@dataclass(frozen=True)
class Work:
    """A command that works in a folder, and the command that continues it after a preemption."""

    folder: Path
    command: list[str]
    again: list[str]

    @property
    def log(self) -> Path:
        """Where the output of both goes."""
        return self.folder / LOG


class Process(Protocol):
    """Work that was started, as subprocess.Popen has it."""

    def poll(self) -> int | None:
        """The exit status, None while it waits or runs."""

    def terminate(self) -> None:
        """Ask it to write a checkpoint and end."""

    def kill(self) -> None:
        """End it."""


class Launcher(Protocol):
    """Starts work. `capacity`: how many pieces may run or wait at a time."""

    capacity: int

    def find(self, folder: Path) -> Process | None:
        """The work that an earlier command started in the folder, None if none waits or runs."""

    def start(self, works: Sequence[Work]) -> list[Process]:
        """Start all of them, in this order."""


class Local:
    """Processes of this machine, `workers` at a time, which share its cores."""

    def __init__(self, workers: int = 1) -> None:
        self.capacity = workers

    def find(self, folder: Path) -> Process | None:
        """The process that has locked the folder."""
        return Orphan(folder) if holder(folder) else None

    def start(self, works: Sequence[Work]) -> list[Process]:
        """Start them all; the cores are divided unless $OMP_NUM_THREADS is set."""
        return [self._start(work) for work in works]

    def _start(self, work: Work) -> Process:
        """Lock the folder and leave the lock to the process, so that it is never started twice."""
        work.folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = acquire(work.folder)
        except ConfigError:  # another command started it in the meantime
            return Orphan(work.folder)
        environment = {**os.environ, "OMP_NUM_THREADS": threads(self.capacity),
                       INHERITED: str(lock)}
        try:
            with open(work.log, "ab") as log:
                # A session of its own: Ctrl-C reaches it only through the queue, once.
                process = subprocess.Popen(
                    work.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    env=environment, start_new_session=True, pass_fds=(lock,))
            name_holder(lock, process.pid)
            return process
        finally:
            os.close(lock)


class Orphan:
    """The process that has locked a folder and that this one did not start."""

    ENDED = -1  # its exit status is unknown: what it did is in the folder

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def poll(self) -> int | None:
        """ENDED when the lock is free."""
        return None if holder(self.folder) else self.ENDED

    def terminate(self) -> None:
        """Ask it to write a checkpoint and end, if it runs on this host."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it, if it runs on this host."""
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if (process := local_process(self.folder)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGTERM raises KeyboardInterrupt as Ctrl-C does, and so does SIGINT in a command that
    a shell runs in the background: processes that were started can be ended first."""
    before = {number: signal.signal(number, signal.default_int_handler)
              for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(processes: Iterable[Process]) -> None:
    """Ask every process to write a checkpoint and end, wait for it, kill those that do not."""
    left, started = list(processes), None
    while left and (started is None or time.monotonic() < started + STOP_SECONDS):
        for process in left:
            process.terminate()
        asked = time.monotonic()
        started = started or asked
        while left and time.monotonic() < asked + ASK_SECONDS:
            time.sleep(0.1)
            left = [process for process in left if process.poll() is None]
    for process in left:
        process.kill()


def threads(workers: int) -> str:
    """Threads for each of `workers` processes: $OMP_NUM_THREADS, or its share of the cores."""
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // workers))
