"""A queue of training runs: start them through a launcher, resume them, show one progress bar."""

import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from tqdm import tqdm

from exp.harness.arguments import BAD_INPUT, COMPLETED, DIVERGED, INTERRUPTED
from exp.harness.config import load_settings
from exp.harness.errors import ConfigError
from exp.harness.folder import parsed, read_object
from exp.harness.lock import holder
from exp.harness.task import task_named
from exp.jobs.finished import finished_run
from exp.jobs.freshness import Identity, folder_identity, identity
from exp.jobs.launch import LOG, Launcher, Local, Orphan, Process, Work, stop, stoppable
from exp.jobs.states import ENDS, State

POLL_SECONDS = 0.5
OUTCOMES = {"completed": COMPLETED, "diverged": DIVERGED}  # status of summary.json -> exit status


class Stopped(Exception):
    """Raised after Ctrl-C or SIGTERM, when the running jobs have written checkpoints and ended."""


@dataclass(frozen=True)
class Job:
    """One training run: a config with overrides, a seed and a run folder."""

    task: str
    config: Path
    seed: int
    folder: Path
    overrides: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """Display name: the name of the run folder's parent, and the seed."""
        return f"{self.folder.parent.name} seed {self.seed}"

    def settings(self) -> dict[str, dict]:
        """Return the resolved settings without those that do not change a result (seed, device).
        Raises ConfigError."""
        return self.identity().settings

    def identity(self) -> Identity:
        """Return the identity that a kept run needs to count as this job. Raises ConfigError."""
        task = task_named(self.task)
        return identity(load_settings(self.config, self.overrides, task), task)

    def work(self) -> Work:
        """Return the command that starts or resumes the run. If the folder holds a damaged run or
        one of other settings, rename that folder first."""
        folder_state = state(self)
        if folder_state in ("other", "damaged"):
            self.folder.rename(free_name(self.folder))
        again = self._again()
        mode = "--overwrite" if folder_state == "outdated" else again
        return Work(self.folder, self.command(mode), self.command(again))

    def _again(self) -> str:
        """Return the option that continues the run; without checkpoints, it starts over."""
        with suppress(ConfigError):  # the run itself will report the error
            settings = load_settings(self.config, self.overrides, task_named(self.task))
            return "--resume" if settings["experiment"]["checkpoints"] else "--overwrite"
        return "--resume"

    def outcome(self) -> int | None:
        """Return the exit status of the finished run in the folder, None if there is none."""
        summary = read_object(self.folder / "summary.json")
        return OUTCOMES.get(summary.get("status", "")) if state(self) == "finished" else None

    def position(self) -> str:
        """Progress, as text: the epoch in the last line of metrics.jsonl."""
        with suppress(OSError, ValueError, IndexError, KeyError, TypeError):
            last = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
            return f"{self.name} epoch {parsed(last)['epoch']}"
        return f"{self.name} starting"

    def command(self, mode: str) -> list[str]:
        """Return the training command. mode: "--resume", which also starts a new run, or
        "--overwrite"."""
        options = [word for override in self.overrides for word in ("--set", override)]
        return [sys.executable, "-m", f"exp.{self.task}.train", "--config", str(self.config),
                "--seed", str(self.seed), "--output", str(self.folder), *options, mode]


class Runnable(Protocol):
    """Interface of a job: one training run, or several of them in one process (exp.tune)."""

    @property
    def name(self) -> str:
        """Display name."""

    @property
    def folder(self) -> Path:
        """Folder of its output, its lock and train.log."""

    def work(self) -> Work:
        """Return the command that starts or continues the job."""

    def outcome(self) -> int | None:
        """Return the exit status if the job is finished, else None."""

    def position(self) -> str:
        """Progress, as text."""


J = TypeVar("J", bound=Runnable)


def state(job: Job) -> State:
    """Return the state of the job's folder.

    "missing": no run. "running": a process holds the lock. "waiting": interrupted, to be resumed.
    "finished". "failed": killed, or ended by an error. "outdated": this run with other RECIPE
    numbers. "damaged": unreadable files. "other": a run of other settings. Raises ConfigError.
    """
    if holder(job.folder):
        return "running"
    if not (job.folder / "config.toml").exists():
        return "missing"
    kept, wanted = folder_identity(job.folder, task_named(job.task)), job.identity()
    if not kept.has_settings_of(wanted):
        return "other"
    if not kept.counts_as(wanted):
        return "damaged" if kept.recipes is None else "outdated"
    ended = ENDS.get(read_object(job.folder / "summary.json").get("status"), "failed")
    if ended == "finished" and finished_run(job.folder, task_named(job.task)) is None:
        return "damaged"
    return ended


def run_jobs(
    jobs: Iterable[J], launcher: Launcher | None = None,
    report: Callable[[J, int], None] = lambda *_: None,
) -> dict[J, int]:
    """Run all jobs with the launcher (default: local processes, one at a time). Return job -> exit
    status.

    An unfinished run of the same settings and RECIPE numbers is resumed. The folder of a run of
    other settings is renamed, not deleted. A run that outlived its queue is waited for. A failed
    run is reported, and the others continue. Output goes to train.log in the run's folder.
    `report(job, status)` is called when a job ends. Raises Stopped after Ctrl-C or SIGTERM, when
    every run has written its checkpoint or has left Slurm's queue.
    """
    launcher = launcher or Local()
    queue = list(jobs)
    running: dict[J, Process] = {}
    statuses: dict[J, int] = {}
    with stoppable(), _progress_bar(len(queue)) as bar:
        try:
            while queue or running:
                ready = [queue.pop(0) for _ in range(min(launcher.capacity - len(running),
                                                         len(queue)))]
                running |= _started(ready, launcher)
                time.sleep(POLL_SECONDS)
                for job, status in _ended(running).items():
                    del running[job]
                    if status is None:
                        queue.insert(0, job)
                        continue
                    statuses[job] = status
                    bar.update()
                    bar.write(f"{job.name}: {_ending(job, status)}", file=sys.stderr)
                    report(job, status)
                bar.set_postfix_str(" · ".join(job.position() for job in running))
        except BaseException as error:
            stop(running.values())
            if isinstance(error, KeyboardInterrupt):
                raise Stopped from None
            raise
    return statuses


def _progress_bar(total: int) -> tqdm:
    return tqdm(total=total, unit="run", dynamic_ncols=True, smoothing=0,
                disable=not sys.stderr.isatty())


def _started(jobs: list[J], launcher: Launcher) -> dict[J, Process]:
    """Start the jobs that are not running yet. Return the process of each job."""
    processes = {job: process for job in jobs if (process := launcher.find(job.folder))}
    new = [job for job in jobs if job not in processes]
    works = [job.work() for job in new]
    return processes | dict(zip(new, launcher.start(works), strict=True)) if new else processes


def _ended(running: dict[J, Process]) -> dict[J, int | None]:
    """Return job -> exit status of the jobs that have ended; None if one must be started again."""
    statuses = {job: process.poll() for job, process in running.items()}
    ended: dict[J, int | None] = {
        job: status for job, status in statuses.items() if status is not None}
    for job, status in list(ended.items()):
        if status == BAD_INPUT and holder(job.folder):  # refused: another process runs it
            running[job] = Orphan(job.folder)
            del ended[job]
        elif status == Orphan.ENDED:
            ended[job] = job.outcome()
    return ended


def _ending(job: Runnable, status: int) -> str:
    known = {COMPLETED: "completed", DIVERGED: "diverged (recorded)", INTERRUPTED: "interrupted"}
    if status in known:
        return known[status]
    log = (job.folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    reason = log[-1] if log else "no output"
    word = "refused" if status == BAD_INPUT else f"failed with status {status}"
    return f"{word}: {reason} (full log: {job.folder / LOG})"


def free_name(folder: Path) -> Path:
    """Return a new name for a folder whose content is kept: the first free <folder>.otherN."""
    number = 1
    while (other := folder.with_name(f"{folder.name}.other{number}")).exists():
        number += 1
    return other
