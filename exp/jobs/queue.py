"""Many runs: training commands given to a launcher, resumable, with one progress view."""

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
OUTCOMES = {"completed": COMPLETED, "diverged": DIVERGED}  # of a run that has ended -> exit status


class Stopped(Exception):
    """Ctrl-C or SIGTERM: the running jobs have written their checkpoints and ended."""


@dataclass(frozen=True)
class Job:
    """One training run: a config with overrides, a seed, and the folder it is written to."""

    task: str
    config: Path
    seed: int
    folder: Path
    overrides: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """What a person calls it: the folder's name and the seed."""
        return f"{self.folder.parent.name} seed {self.seed}"

    def settings(self) -> dict[str, dict]:
        """The resolved settings, seed and device left out. Raises ConfigError."""
        return self.identity().settings

    def identity(self) -> Identity:
        """What a kept run must have to count as this one. Raises ConfigError."""
        task = task_named(self.task)
        return identity(load_settings(self.config, self.overrides, task), task)

    def work(self) -> Work:
        """What runs it, or continues what its folder holds; a run of other settings and a damaged
        one are renamed."""
        before = state(self)
        if before in ("other", "damaged"):
            self.folder.rename(free_name(self.folder))
        again = self._again()
        mode = "--overwrite" if before == "outdated" else again
        return Work(self.folder, self.command(mode), self.command(again))

    def _again(self) -> str:
        """The option with which it goes on; a run without checkpoints starts anew."""
        with suppress(ConfigError):  # the run itself will say what is wrong
            settings = load_settings(self.config, self.overrides, task_named(self.task))
            return "--resume" if settings["experiment"]["checkpoints"] else "--overwrite"
        return "--resume"

    def outcome(self) -> int | None:
        """The exit status of the finished run in the folder, None if there is none."""
        summary = read_object(self.folder / "summary.json")
        return OUTCOMES.get(summary.get("status", "")) if state(self) == "finished" else None

    def position(self) -> str:
        """How far it is, from the last line of its record."""
        with suppress(OSError, ValueError, IndexError, KeyError, TypeError):
            last = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
            return f"{self.name} epoch {parsed(last)['epoch']}"
        return f"{self.name} starting"

    def command(self, mode: str) -> list[str]:
        """The training command; `mode` is "--resume", which also begins, or "--overwrite"."""
        options = [word for override in self.overrides for word in ("--set", override)]
        return [sys.executable, "-m", f"exp.{self.task}.train", "--config", str(self.config),
                "--seed", str(self.seed), "--output", str(self.folder), *options, mode]


class Runnable(Protocol):
    """What the queue needs of a job: a training run, or many of them in one process (exp.tune)."""

    @property
    def name(self) -> str:
        """What a person calls it."""

    @property
    def folder(self) -> Path:
        """What its work, its lock and train.log are in."""

    def work(self) -> Work:
        """What runs it, or continues what its folder holds."""

    def outcome(self) -> int | None:
        """The exit status if it is finished, else None."""

    def position(self) -> str:
        """How far it is."""


J = TypeVar("J", bound=Runnable)


def state(job: Job) -> State:
    """What the job's folder holds: nothing ("missing"), this run while it is "running", "waiting"
    to be resumed after an interruption, "finished", or "failed": killed or ended by an error. Else
    this run with another RECIPE ("outdated"), a "damaged" record, or a run of "other" settings.
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
    """Run every job with the launcher (default: here, one at a time); job -> exit status.

    An unfinished run of the same settings and recipes is resumed; a run of other settings is
    renamed, never lost; one that still runs, because only its queue was killed, is waited for. A
    run that fails is reported and the rest continue. The output of each goes to train.log in its
    folder. `report` is called as each one ends. Raises Stopped after Ctrl-C or SIGTERM, when every
    run has written its checkpoint or has left Slurm's queue.
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
    """Start the jobs that are not running; the process of each."""
    processes = {job: process for job in jobs if (process := launcher.find(job.folder))}
    new = [job for job in jobs if job not in processes]
    works = [job.work() for job in new]
    return processes | dict(zip(new, launcher.start(works), strict=True)) if new else processes


def _ended(running: dict[J, Process]) -> dict[J, int | None]:
    """Job -> exit status of those that have ended; None for one that must be started again."""
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
    return f"{word}: {reason} (all of it in {job.folder / LOG})"


def free_name(folder: Path) -> Path:
    """What a folder is renamed to, to keep what it holds: the first free folder.otherN."""
    number = 1
    while (other := folder.with_name(f"{folder.name}.other{number}")).exists():
        number += 1
    return other
