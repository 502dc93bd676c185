"""Work as jobs of Slurm by way of submitit, or of submitit's own local executor, to try it."""

import argparse
import os
import signal
import time
import tomllib
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from exp.harness.cli import FAILED, INTERRUPTED
from exp.harness.errors import ConfigError
from exp.jobs.launch import Launcher, Local, Process, Work, threads

LAUNCHERS = ("local", "slurm", "submitit-local")
ARRAY = 1000  # jobs handed to Slurm at once: its default MaxArraySize, less one
MINUTES = 24 * 60  # that a job may take, unless `--slurm time=` says otherwise
CHECK_SECONDS = 2.0  # between two questions to Slurm about jobs that were cancelled
ONE = ("nodes", "ntasks_per_node")  # a run is one process
RESTARTS = 100  # times that a job which ran out of time is put into the queue again


class Submitit:
    """Jobs of Slurm, or of submitit's own local executor (`cluster` "slurm" or "local").

    On Slurm all work is queued at once as a job array, `workers` of it at a time; a job that runs
    out of time or is preempted is told to checkpoint and queued again. parameters: of submitit's
    Slurm executor (partition, time in minutes, gpus_per_node, cpus_per_task, mem, qos, ...).
    folder: for its scripts and logs; on a file system that every host shares.
    Raises ConfigError without submitit, without Slurm, and for a parameter that is none.
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
            raise ConfigError(f"--slurm time={parameters['time']}: write the minutes")
        for key in ONE:
            if parameters.get(key, 1) != 1:
                raise ConfigError(f"--slurm {key}={parameters[key]}: a run is one process")
        own = {f"slurm_{key}": value for key, value in parameters.items()}
        try:
            self.executor = submitit.AutoExecutor(folder, cluster=cluster,
                                                  slurm_max_num_timeout=RESTARTS)
            self.executor.update_parameters(**{
                "name": "ars", "timeout_min": MINUTES, "slurm_array_parallelism": workers, **own})
        except (NameError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"submitit: {error}") from error

    def start(self, works: Sequence[Work]) -> list[Process]:
        """Queue them all. Raises ConfigError if Slurm refuses them."""
        from exp.jobs.remote import Command

        share = None if self.cluster == "slurm" else threads(self.capacity)
        commands = [Command(work.command, work.again, work.log, share) for work in works]
        try:
            with _deaf_to_ctrl_c():
                jobs = self.executor.submit_array(commands)
        except RuntimeError as error:  # submitit's errors are
            raise ConfigError(f"the jobs were refused: {error}") from error
        return [_Submitted(self.cluster, job, work.log)
                for job, work in zip(jobs, works, strict=True)]


class _Submitted:
    """A job of submitit's as a Process."""

    asked = 0.0  # when Slurm was last asked about cancelled jobs: of all of them at once

    def __init__(self, cluster: str, job, log: Path) -> None:
        self.cluster, self.job, self.log = cluster, job, log
        self.status: int | None = None
        self.told = False

    def poll(self) -> int | None:
        """The command's exit status, None while it waits or runs; 1 if its host never gave one."""
        if self.status is None and self.job.done(force_check=self.told and self._may_ask()):
            if not self.told or self.job.paths.result_pickle.exists():
                self.status = self._result()
            elif self.cluster == "local" or not self.job.paths.stdout.exists():
                self.status = INTERRUPTED  # never began; what did is cancelled, but checkpoints yet
        return self.status

    def _result(self) -> int:
        try:
            return self.job.result()
        except Exception as error:  # whatever the job raised, or that it came to no end
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with open(self.log, "a", encoding="utf-8") as log:
                log.write(f"{error}\njob {self.job.job_id} failed, see {self.job.paths.stderr}\n")
            return FAILED

    @classmethod
    def _may_ask(cls) -> bool:
        now = time.monotonic()
        may = now - cls.asked > CHECK_SECONDS
        cls.asked = now if may else cls.asked
        return may

    def terminate(self) -> None:
        """Cancel it: Slurm takes it out of the queue, or gives it SIGTERM and then KillWait."""
        if self.cluster == "slurm" and not self.told:
            self.job.cancel(check=False)
        if self.cluster == "local":  # submitit's own cancelling kills after one second
            with suppress(ProcessLookupError):
                os.kill(int(self.job.job_id), signal.SIGTERM)
        self.told = True

    def kill(self) -> None:
        """Nothing more than `terminate`: Slurm kills what does not end."""


@contextmanager
def _deaf_to_ctrl_c():
    """Inside, Ctrl-C is ignored, by what is started too: it shall reach a job only through us."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# --- the command line


def add_launcher_options(parser: argparse.ArgumentParser) -> None:
    """--launcher and --slurm, beside the parser's own --workers."""
    parser.add_argument("--launcher", choices=LAUNCHERS, default="local",
                        help="where runs go: processes of this machine (default), Slurm, or "
                             "submitit without Slurm, to try it")
    parser.add_argument("--slurm", action="append", default=[], metavar="KEY=VALUE",
                        help="a parameter of submitit's Slurm executor: partition, time (minutes), "
                             "gpus_per_node, cpus_per_task, mem, ...; repeatable")


def launcher_of(options: argparse.Namespace, folder: Path) -> Launcher:
    """The launcher that the options ask for, its logs in `folder`. Raises ConfigError."""
    if options.launcher == "local":
        if options.slurm:
            raise ConfigError("--slurm goes with --launcher slurm")
        return Local(options.workers)
    cluster = "slurm" if options.launcher == "slurm" else "local"
    return Submitit(cluster, folder, options.workers, dict(map(_parameter, options.slurm)))


def _parameter(text: str) -> tuple[str, object]:
    """KEY=VALUE, the value in TOML syntax or else a string: `time=240`, `partition=gpu`."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--slurm {text}: write KEY=VALUE")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value
