"""A time limit for a queue: jobs that do not fit are not started, running jobs are stopped."""

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from exp.harness.arguments import INTERRUPTED
from exp.jobs.launch import Launcher, Process, Work


class InTime:
    """A launcher that starts only work that will end within `limit` seconds from now.

    seconds: folder of the work -> its duration, None if unknown; then the work is started.
    """

    def __init__(self, launcher: Launcher, limit: float,
                 seconds: Callable[[Path], float | None]) -> None:
        self.launcher, self.seconds = launcher, seconds
        self.end = time.monotonic() + limit
        self.capacity = launcher.capacity

    def find(self, folder: Path) -> Process | None:
        """As the wrapped launcher."""
        return self.launcher.find(folder)

    def start(self, works: Sequence[Work]) -> list[Process]:
        """Start the work that fits. The rest ends at once with the status of an interrupted run."""
        fits = [self._fits(work.folder) for work in works]
        started = iter(self.launcher.start(
            [work for work, fit in zip(works, fits, strict=True) if fit]))
        return [next(started) if fit else NotStarted() for fit in fits]

    def _fits(self, folder: Path) -> bool:
        seconds = self.seconds(folder) or 0.0
        left = self.end - time.monotonic()
        if seconds > left:
            print(f"{folder}: not started, it needs about {seconds:.0f} s but only {left:.0f} s "
                  "are left", file=sys.stderr)
        return seconds <= left


class NotStarted:
    """The process of work that was not started."""

    def poll(self) -> int:
        """Return the exit status of an interrupted run."""
        return INTERRUPTED

    def terminate(self) -> None:
        """Do nothing: there is no process."""

    kill = terminate


@contextmanager
def stopped_after(seconds: float | None) -> Iterator[None]:
    """Raise KeyboardInterrupt in the main thread, as Ctrl-C does, after `seconds`; never if None.
    """
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds or 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
