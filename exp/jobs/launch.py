"""Launchers, which run commands: as processes of this machine (`Local`), or as Slurm jobs
(slurm.py)."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from exp.harness.errors import ConfigError
from exp.harness.lock import INHERITED, acquire, holder, local_process, name_holder

STOP_SECONDS = 60.0  # time for a run to finish its step and write a checkpoint
ASK_SECONDS = 5.0  # the signal is repeated after this time: a run may miss it while starting
LOG = "train.log"
QUEUE = "ARS_QUEUE"  # environment variable: process id of the queue that started a local process


@dataclass(frozen=True)
class Work:
    """A command with its folder, and the command that continues it after a preemption."""

    folder: Path
    command: list[str]
    again: list[str]

    @property
    def log(self) -> Path:
        """Log file of both commands."""
        return self.folder / LOG


class Process(Protocol):
    """Started work, with the interface of subprocess.Popen."""

    def poll(self) -> int | None:
        """Return the exit status, None while the work waits or runs."""

    def terminate(self) -> None:
        """Ask the process to write a checkpoint and exit."""

    def kill(self) -> None:
        """Kill the process."""


class Launcher(Protocol):
    """Starts work. `capacity`: how many pieces may run or wait at a time."""

    capacity: int

    def find(self, folder: Path) -> Process | None:
        """Return the work that an earlier command started in the folder, None if none waits or
        runs."""

    def start(self, works: Sequence[Work]) -> list[Process]:
        """Start all work in order. Return a process for each."""


class Local:
    """Runs work as processes of this machine, `workers` at a time, which share its cores. each:
    threads of each process, by default `threads(workers)`."""

    def __init__(self, workers: int = 1, each: str | None = None) -> None:
        self.capacity = workers
        self.each = each

    def find(self, folder: Path) -> Process | None:
        """Return the process that has locked the folder, None if it is free."""
        return Orphan(folder) if holder(folder) else None

    def start(self, works: Sequence[Work]) -> list[Process]:
        """Start all work. The cores are divided among the workers unless $OMP_NUM_THREADS is set.
        """
        return [self._start(work) for work in works]

    def _start(self, work: Work) -> Process:
        """Lock the folder and pass the lock to the process, so that no work is started twice."""
        work.folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = acquire(work.folder)
        except ConfigError:  # another command started it in the meantime
            return Orphan(work.folder)
        environment = {**os.environ, "OMP_NUM_THREADS": self.each or threads(self.capacity),
                       INHERITED: str(lock), QUEUE: str(os.getpid())}
        try:
            with open(work.log, "ab") as log:
                # A new session: Ctrl-C reaches the process once, through the queue alone.
                process = subprocess.Popen(
                    work.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    env=environment, start_new_session=True, pass_fds=(lock,))
            name_holder(lock, process.pid)
            return process
        finally:
            os.close(lock)


class Orphan:
    """A process that has locked a folder and was started by another command. It is signaled only if
    that command was a queue which has ended: otherwise it belongs to somebody else."""

    ENDED = -1  # the exit status is unknown; the folder holds the outcome

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def poll(self) -> int | None:
        """Return ENDED when the lock is free, None until then."""
        return None if holder(self.folder) else self.ENDED

    def terminate(self) -> None:
        """Ask the process to write a checkpoint and exit, if it runs on this host."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process, if it runs on this host."""
        self._send(signal.SIGKILL)

    def is_abandoned(self) -> bool:
        """Whether the process runs on this host and its queue has ended, so that it has another
        parent now. False where there is no /proc."""
        try:
            process = Path("/proc", str(local_process(self.folder)))
            environment = (process / "environ").read_bytes().decode(errors="replace").split("\0")
            status = (process / "status").read_text()
            (parent,) = re.findall(r"^PPid:\s*(\d+)", status, re.MULTILINE)
        except (OSError, ValueError):
            return False
        queues = [word for word in environment if word.startswith(f"{QUEUE}=")]
        return bool(queues) and f"{QUEUE}={parent}" not in queues

    def _send(self, number: int) -> None:
        process = local_process(self.folder)
        if process is not None and self.is_abandoned():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within the context, SIGTERM and SIGINT raise KeyboardInterrupt, so that started processes can
    be stopped first. This includes SIGINT in a background command, where shells ignore it."""
    before = {number: signal.signal(number, signal.default_int_handler)
              for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(processes: Iterable[Process]) -> None:
    """Ask every process to write a checkpoint and exit; kill those still running after
    STOP_SECONDS. Processes of other commands that still run are left alone."""
    running: list[Process] = [process for process in processes
                              if not isinstance(process, Orphan) or process.is_abandoned()]
    started = None
    while running and (started is None or time.monotonic() < started + STOP_SECONDS):
        for process in running:
            process.terminate()
        signaled = time.monotonic()
        started = started or signaled
        while running and time.monotonic() < signaled + ASK_SECONDS:
            time.sleep(0.1)
            running = [process for process in running if process.poll() is None]
    for process in running:
        process.kill()


def threads(workers: int) -> str:
    """Return the threads of each of `workers` processes: $OMP_NUM_THREADS, or a share of the cores.
    """
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // workers))
