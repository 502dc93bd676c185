"""One command as a submitit job: run it, forward signals, continue it after a preemption.

Its imports are light, so that the compute host starts the command without delay.
"""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from submitit.helpers import DelayedSubmission


class Command:
    """Runs `command` and returns its exit status. Its output is appended to `log`.

    Slurm sends SIGTERM only to the job, which forwards it: training then writes a checkpoint and
    exits. After a time limit, a preemption or the loss of its host, the job continues with `again`.
    threads: value of $OMP_NUM_THREADS; None uses the CPUs that Slurm granted.
    """

    def __init__(self, command: list[str], again: list[str], log: Path, threads: str | None
                 ) -> None:
        self.command, self.again, self.log, self.threads = command, again, log, threads
        self.process: subprocess.Popen | None = None
        self.stopping = False

    def __call__(self) -> int:
        """Run the command and return its exit status."""
        signal.signal(signal.SIGTERM, self._stop)
        restarted = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        environment = dict(os.environ)
        if threads := self.threads or environment.get("SLURM_CPUS_PER_TASK"):
            environment["OMP_NUM_THREADS"] = threads
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.again if restarted else self.command, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, env=environment, start_new_session=True)
        if self.stopping:
            self.process.terminate()
        self._wait()
        return self.process.wait()

    def checkpoint(self) -> DelayedSubmission:
        """Stop the command and return the job that submitit queues in place of this one, at the
        time limit or a preemption."""
        self._stop()
        self._wait()
        return DelayedSubmission(Command(self.again, self.again, self.log, self.threads))

    def _wait(self) -> None:
        """Wait for the command. Popen.wait would hold a lock, and deadlock when submitit calls
        `checkpoint` from a signal handler in the middle of it."""
        with suppress(ChildProcessError):
            if self.process is not None:
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)

    def _stop(self, *_: Any) -> None:
        self.stopping = True
        if self.process is not None:
            self.process.terminate()
