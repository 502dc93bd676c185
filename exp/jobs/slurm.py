"""Run work as Slurm jobs through submitit, or on its local executor, to try it without Slurm."""

import argparse
import json
import os
import signal
import time
import tomllib
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from exp.harness.arguments import FAILED, INTERRUPTED
from exp.harness.errors import ConfigError
from exp.jobs.launch import LOG, Launcher, Local, Process, Work, threads

LAUNCHERS = ("local", "slurm", "submitit-local")
TICKET = "submitted.json"  # in the work's folder: the id and the log folder of its Slurm job
ARRAY = 1000  # jobs of one array: Slurm's default MaxArraySize, less one
MINUTES = 24 * 60  # time limit of a job without `--slurm time=`
CHECK_SECONDS = 2.0  # between two requests to Slurm about cancelled jobs
ONE = ("nodes", "ntasks_per_node")  # must be 1: a run is one process
RESTARTS = 100  # how often a job that runs out of time is queued again


class Submitit:
    """Runs work as Slurm jobs (`cluster` "slurm"), or on submitit's local executor ("local").

    On Slurm, all work is submitted at once as a job array, of which `workers` jobs run at a time. A
    job that runs out of time or is preempted writes a checkpoint and is queued again. parameters:
    those of submitit's Slurm executor (partition, time in minutes, gpus_per_node, cpus_per_task,
    mem, ...). folder: for submitit's scripts and logs, on a file system that all hosts share.
    Raises ConfigError if submitit or Slurm is missing, and for an unknown parameter.
    """

    def __init__(self, cluster: str, folder: Path, workers: int, parameters: dict) -> None:
        try:
            import submitit
        except ImportError as error:
            raise ConfigError("this launcher needs submitit: uv sync --extra slurm, or "
                              "pip install 'submitit>=1.5'") from error
        self.cluster = cluster
        self.capacity = ARRAY if cluster == "slurm" else workers
        if not isinstance(parameters.get("time", MINUTES), int):
            raise ConfigError(f"--slurm time={parameters['time']}: must be a number of minutes")
        for key in ONE:
            if parameters.get(key, 1) != 1:
                raise ConfigError(f"--slurm {key}={parameters[key]}: must be 1, as each run is one "
                                  "process")
        prefixed = {f"slurm_{key}": value for key, value in parameters.items()}
        try:
            self.executor = submitit.AutoExecutor(folder, cluster=cluster,
                                                  slurm_max_num_timeout=RESTARTS)
            self.executor.update_parameters(**{
                "name": "ars", "timeout_min": MINUTES, "slurm_array_parallelism": workers,
                **prefixed})
        except (NameError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"submitit: {error}") from error

    def find(self, folder: Path) -> Process | None:
        """Return the unfinished work that an earlier command started in the folder, None if there
        is none."""
        from exp.harness.folder import parsed  # here, because it imports torch: --help stays fast

        try:
            ticket = parsed((folder / TICKET).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return Local().find(folder)
        from submitit import SlurmJob

        job: SlurmJob = SlurmJob(ticket["logs"], ticket["job"])
        if job.done(force_check=True):
            return None
        return _Submitted(self.cluster, job, folder / LOG)

    def start(self, works: Sequence[Work]) -> list[Process]:
        """Submit all work. Raises ConfigError if Slurm refuses it."""
        from exp.jobs.remote import Command

        share = None if self.cluster == "slurm" else threads(self.capacity)
        commands = [Command(work.command, work.again, work.log, share) for work in works]
        try:
            with _sigint_ignored():
                jobs = self.executor.submit_array(commands)
        except RuntimeError as error:  # the base of submitit's errors
            raise ConfigError(f"cannot submit the jobs: {error}") from error
        if self.cluster == "slurm":
            for job, work in zip(jobs, works, strict=True):
                work.folder.mkdir(parents=True, exist_ok=True)
                (work.folder / TICKET).write_text(json.dumps(
                    {"job": job.job_id, "logs": str(job.paths.folder)}), encoding="utf-8")
        return [_Submitted(self.cluster, job, work.log)
                for job, work in zip(jobs, works, strict=True)]


class _Submitted:
    """A submitted job as a Process."""

    checked_at = 0.0  # time of the last request about cancelled jobs, shared by all instances

    def __init__(self, cluster: str, job, log: Path) -> None:
        self.cluster, self.job, self.log = cluster, job, log
        self.status: int | None = None
        self.cancelled = False

    def poll(self) -> int | None:
        """Return the command's exit status, None while it waits or runs; 1 if its host was lost."""
        if self.status is None and self.job.done(force_check=self.cancelled and self._is_due()):
            if not self.cancelled or self.job.paths.result_pickle.exists():
                self.status = self._result()
            elif self.cluster == "local" or not self.job.paths.stdout.exists():
                self.status = INTERRUPTED  # never started; a started one still writes a checkpoint
        return self.status

    def _result(self) -> int:
        try:
            return self.job.result()
        except Exception as error:  # raised by the job, or its host was lost
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with open(self.log, "a", encoding="utf-8") as log:
                log.write(f"{error}\njob {self.job.job_id} failed, see {self.job.paths.stderr}\n")
            return FAILED

    @classmethod
    def _is_due(cls) -> bool:
        now = time.monotonic()
        due = now - cls.checked_at > CHECK_SECONDS
        cls.checked_at = now if due else cls.checked_at
        return due

    def terminate(self) -> None:
        """Cancel the job: Slurm removes it from its queue, or sends SIGTERM and, after KillWait,
        SIGKILL."""
        if self.cluster == "slurm" and not self.cancelled:
            self.job.cancel(check=False)
        if self.cluster == "local":  # submitit's own cancel kills after one second
            with suppress(ProcessLookupError):
                os.kill(int(self.job.job_id), signal.SIGTERM)
        self.cancelled = True

    def kill(self) -> None:
        """Do nothing: after `terminate`, Slurm kills a job that does not exit."""


@contextmanager
def _sigint_ignored():
    """Ignore SIGINT within the context, also in started processes: Ctrl-C reaches jobs through the
    queue."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# --- the command line


def add_launcher_options(parser: argparse.ArgumentParser) -> None:
    """Add --launcher and --slurm to a parser that has --workers."""
    parser.add_argument("--launcher", choices=LAUNCHERS, default="local",
                        help="where to start runs: as local processes (default), through Slurm, or "
                             "through submitit without Slurm, as a trial")
    parser.add_argument("--slurm", action="append", default=[], metavar="KEY=VALUE",
                        help="a parameter of submitit's Slurm executor: partition, time (minutes), "
                             "gpus_per_node, cpus_per_task, mem, ...; repeatable")


def launcher_of(options: argparse.Namespace, folder: Path) -> Launcher:
    """Return the launcher that the options name; submitit logs to `folder`. Raises ConfigError."""
    if options.launcher == "local":
        if options.slurm:
            raise ConfigError("--slurm needs --launcher slurm or submitit-local")
        return Local(options.workers)
    cluster = "slurm" if options.launcher == "slurm" else "local"
    return Submitit(cluster, folder, options.workers, dict(map(_parameter, options.slurm)))


def _parameter(text: str) -> tuple[str, object]:
    """Parse KEY=VALUE, the value in TOML syntax or else a string: `time=240`, `partition=gpu`."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--slurm {text}: write KEY=VALUE")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value
