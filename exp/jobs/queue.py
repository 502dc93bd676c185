"""Many runs: training commands handed to a launcher, resumable, seen as one."""

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from exp.harness.cli import BAD_INPUT, COMPLETED, DIVERGED, INTERRUPTED
from exp.harness.config import Task, load_settings
from exp.jobs.freshness import Identity, folder_identity, identity
from exp.jobs.launch import Launcher, Local, Work, stop, stoppable

POLL_SECONDS = 0.5
LOG = "train.log"

State = Literal["finished", "outdated", "unfinished", "missing", "other"]


class Stopped(Exception):
    """Ctrl-C or SIGTERM: the running jobs were told to stop and have written their checkpoints."""


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

    def command(self, held: str) -> list[str]:
        """The training command; `held` is "--resume" or "--overwrite"."""
        options = [word for override in self.overrides for word in ("--set", override)]
        return [sys.executable, "-m", f"exp.{self.task}.train", "--config", str(self.config),
                "--seed", str(self.seed), "--output", str(self.folder), *options, held]


def task_named(name: str) -> Task:
    """The Task of exp.<name>.train."""
    return importlib.import_module(f"exp.{name}.train").TASK


def state(job: Job) -> State:
    """What the job's folder holds: this run, finished or unfinished; this run with another RECIPE
    ("outdated"); a run of other settings; nothing."""
    if not (job.folder / "config.toml").exists():
        return "missing"
    kept, wanted = folder_identity(job.folder, task_named(job.task)), job.identity()
    if not kept.has_settings_of(wanted):
        return "other"
    if not kept.counts_as(wanted):
        return "outdated"
    ended = _json(job.folder / "summary.json").get("status") in ("completed", "diverged")
    return "finished" if ended else "unfinished"


def run_jobs(
    jobs: Iterable[Job], launcher: Launcher | None = None,
    report: Callable[[Job, int], None] = lambda *_: None,
) -> dict[Job, int]:
    """Run every job where the launcher puts it (default: here, one at a time); job -> exit status.

    A folder with an unfinished run of the same settings and recipes is resumed; a run of other
    settings is renamed, never lost. A failed run is reported and the rest go on. The output of
    each goes to train.log in its folder; one progress view shows all. `report` is called as each
    one ends. Raises Stopped after Ctrl-C or SIGTERM, when every job has checkpointed or left the
    queue.
    """
    launcher = launcher or Local()
    queue, running, done = list(jobs), {}, {}
    with stoppable(), tqdm(total=len(queue), unit="run", dynamic_ncols=True, smoothing=0,
                           disable=not sys.stderr.isatty()) as bar:
        try:
            while queue or running:
                room = launcher.capacity - len(running)
                ready, queue = queue[:room], queue[room:]
                if ready:
                    running |= zip(ready, launcher.start([_work(job) for job in ready]),
                                   strict=True)
                time.sleep(POLL_SECONDS)
                ended = {job: status for job, process in running.items()
                         if (status := process.poll()) is not None}
                for job, status in ended.items():
                    done[job] = status
                    del running[job]
                    bar.update()
                    bar.write(f"{job.name}: {_ending(job, status)}", file=sys.stderr)
                    report(job, status)
                bar.set_postfix_str(" · ".join(map(_where, running)))
        except KeyboardInterrupt:
            stop(running.values())
            raise Stopped from None
        except BaseException:
            stop(running.values())
            raise
    return done


def _work(job: Job) -> Work:
    found = state(job)
    if found == "other":
        job.folder.rename(_free_name(job.folder))
    resume = job.command("--resume")
    first = resume if found == "unfinished" else job.command("--overwrite")
    return Work(first, resume, job.folder / LOG)


def _ending(job: Job, status: int) -> str:
    known = {COMPLETED: "completed", DIVERGED: "diverged (recorded)", INTERRUPTED: "interrupted"}
    if status in known:
        return known[status]
    log = (job.folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    reason = log[-1] if log else "no output"
    word = "refused" if status == BAD_INPUT else f"failed with status {status}"
    return f"{word}: {reason} (all of it in {job.folder / LOG})"


def _where(job: Job) -> str:
    """How far a running job is, from the last line of its record."""
    with suppress(OSError, ValueError, IndexError):
        last = (job.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        return f"{job.name} epoch {json.loads(last)['epoch']}"
    return f"{job.name} starting"


def _free_name(folder: Path) -> Path:
    number = 1
    while (other := folder.with_name(f"{folder.name}.other{number}")).exists():
        number += 1
    return other


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
