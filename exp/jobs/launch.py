"""Launchers: where commands are run. Here: as processes of this machine; slurm.py: as jobs."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

STOP_SECONDS = 60.0  # that a run told to stop may take to finish its step and checkpoint
ASK_SECONDS = 5.0  # after which it is told again: it may have been starting


@dataclass(frozen=True)
class Work:
    """A command, the one that goes on with it where it was cut off, and the log of both."""

    command: list[str]
    again: list[str]
    log: Path


class Process(Protocol):
    """Work that was started, here or elsewhere: what subprocess.Popen has too."""

    def poll(self) -> int | None:
        """The exit status, None while it waits or runs."""

    def terminate(self) -> None:
        """Tell it to checkpoint and end."""

    def kill(self) -> None:
        """End it."""


class Launcher(Protocol):
    """Starts work. `capacity`: how many pieces may be under way or in its queue."""

    capacity: int

    def start(self, works: Sequence[Work]) -> list[Process]:
        """Start them all; in their order."""


class Local:
    """Processes of this machine, `workers` at a time, which share its cores."""

    def __init__(self, workers: int = 1) -> None:
        self.capacity = workers

    def start(self, works: Sequence[Work]) -> list[Process]:
        """Start them all; the cores are shared out unless $OMP_NUM_THREADS says otherwise."""
        return [self._start(work) for work in works]

    def _start(self, work: Work) -> subprocess.Popen:
        environment = {**os.environ, "OMP_NUM_THREADS": threads(self.capacity)}
        work.log.parent.mkdir(parents=True, exist_ok=True)
        with open(work.log, "ab") as log:
            # A session of its own: Ctrl-C reaches it only through us, once.
            return subprocess.Popen(work.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                    env=environment, start_new_session=True)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within, SIGTERM raises KeyboardInterrupt as Ctrl-C does, and SIGINT does so even in a command
    that a shell has put in the background: whoever started processes can end them first."""
    before = {number: signal.signal(number, signal.default_int_handler)
              for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(processes: Sequence[Process]) -> None:
    """Tell every process to checkpoint and end, wait until it has, kill what does not."""
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
    """What each of `workers` processes gets of the cores, unless $OMP_NUM_THREADS says it."""
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // workers))
