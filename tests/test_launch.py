"""Launchers: local processes and submitit give the same: statuses, logs, stopping, going on."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import TINY

from exp.harness.errors import ConfigError
from exp.harness.folder import RunFolder
from exp.harness.lock import INHERITED, acquire, holder, local_process
from exp.jobs import here, launch, queue
from exp.jobs.launch import LOG, Local, Work
from exp.jobs.queue import Job, Stopped, run_jobs
from exp.jobs.slurm import Submitit, _parameter, _Submitted, launcher_of
from exp.reproduce.options import parse

submitit = pytest.importorskip("submitit")
# Told to end, it takes a moment, says so and leaves with training's status.
PATIENT = """
import os, pathlib, signal, sys, time
def end(*_):
    time.sleep(0.2)
    pathlib.Path("ended").write_text("checkpoint")
    sys.exit(130)
signal.signal(signal.SIGTERM, end)
pathlib.Path("parent").write_text(str(os.getppid()))
time.sleep(60)
"""


@dataclass(frozen=True)
class Quick(Job):
    """A job that is any Python text, run in its folder."""

    code: str = ""

    def outcome(self):
        return 0 if (self.folder / "done").exists() else None

    def command(self, mode):
        code = f"import os; os.chdir({str(self.folder)!r}); mode = {mode!r}\n{self.code}"
        return [sys.executable, "-S", "-c", code]


def quick(folder, seed, code):
    return Quick("none", Path("none.toml"), seed, folder / "quick" / f"seed{seed}", code=code)


@pytest.fixture(params=["local", "submitit-local"])
def launcher(request, tmp_path):
    return Local(2) if request.param == "local" else Submitit("local", tmp_path / "logs", 2, {})


def test_runs_end_are_reported_and_fail_alone(launcher, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    jobs = [quick(tmp_path, 1, "print(mode, os.environ['OMP_NUM_THREADS'])"),
            quick(tmp_path, 2, "raise SystemExit('error: no such thing')")]
    reported = {}
    assert run_jobs(jobs, launcher, reported.__setitem__) == dict(zip(jobs, (0, 1), strict=True))
    assert reported == {jobs[0]: 0, jobs[1]: 1}
    assert (jobs[0].folder / LOG).read_text() == "--resume 3\n"
    assert "quick seed 2: failed with status 1: error: no such thing" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_every_run_checkpoint_and_then_comes_back(number, launcher, tmp_path,
                                                                monkeypatch):
    jobs = [quick(tmp_path, seed, PATIENT) for seed in (1, 2, 3)]

    def interrupt(seconds):
        if all((job.folder / "parent").exists() for job in jobs[:2]):
            os.kill(os.getpid(), number)
        time.sleep(0.05)

    monkeypatch.setattr(queue, "time", type("Clock", (), {"sleep": staticmethod(interrupt)}))
    before = signal.signal(number, signal.SIG_IGN)  # as a shell leaves SIGINT in the background
    try:
        with pytest.raises(Stopped):
            run_jobs(jobs, launcher)
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert [(job.folder / "ended").exists() for job in jobs] == [True, True, False]


QUEUE = """
import sys
from pathlib import Path
from exp.jobs.queue import Job, run_jobs
run_jobs([Job("grokking", Path(sys.argv[1]), 1, Path(sys.argv[2]), tuple(sys.argv[3:]))])
"""


def test_a_killed_queue_finds_its_run_again_and_starts_nothing_twice(tmp_path):
    config, folder = Path("config/lrp_grok_adamw_600e.toml"), tmp_path / "run" / "seed1"
    job = Job("grokking", config, 1, folder, (*TINY["grokking"], "experiment.epochs=800"))
    first = subprocess.Popen([sys.executable, "-c", QUEUE, config, folder, *job.overrides])
    wait_for(folder / "metrics.jsonl")
    first.kill()
    assert first.wait() == -signal.SIGKILL
    child = local_process(folder)
    assert child not in (None, first.pid)
    with pytest.raises(ConfigError, match=f"in use by process {child} on"):
        RunFolder(folder, resume=True)
    assert run_jobs([job]) == {job: 0}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, 801))
    assert "resumed_from" not in json.loads((folder / "run.json").read_text())
    assert holder(folder) is None


def test_a_run_that_dies_after_its_queue_is_started_again(tmp_path):
    job = quick(tmp_path, 1, "open('done', 'w')")
    job.folder.mkdir(parents=True)
    code = f"from exp.harness.lock import *; acquire(Path({str(job.folder)!r})); print(flush=True);"
    other = subprocess.Popen([sys.executable, "-S", "-c", code + "time.sleep(60)"],
                             stdout=subprocess.PIPE)
    other.stdout.readline()
    threading.Timer(1.0, other.kill).start()
    assert run_jobs([job]) == {job: 0}
    assert other.wait() == -signal.SIGKILL and (job.folder / "done").exists()
    other.stdout.close()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_only_a_run_whose_queue_has_ended_is_stopped_by_another_command(tmp_path):
    code = (f"from exp.harness.lock import *; acquire(Path({str(tmp_path)!r})); print(flush=True);"
            "time.sleep(60)")
    for variable, is_stopped in (({}, False), ({launch.QUEUE: str(os.getpid())}, False),
                                 ({launch.QUEUE: "0"}, True)):  # by hand, by a queue, left behind
        other = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE,
                                 env={**os.environ, **variable})
        other.stdout.readline()
        launch.stop([launch.Orphan(tmp_path)])
        assert (other.poll() is not None) == is_stopped
        other.kill()
        other.communicate()


def test_an_error_in_this_process_fails_one_run_and_is_logged(tmp_path, monkeypatch):
    def no_compiler(*_):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(here, "launch", no_compiler)
    work = Work(tmp_path, ["python", "-m", "exp.ladder.train"], [])
    assert [process.poll() for process in here.Here().start([work])] == [1]
    assert "RuntimeError: no C++ compiler" in work.log.read_text()


def test_a_process_inherits_the_lock_and_only_it_may_write(tmp_path):
    descriptor = acquire(tmp_path)
    with pytest.raises(ConfigError, match=f"in use by process {os.getpid()} on"):
        acquire(tmp_path)
    code = (f"from exp.harness.lock import *; mine = acquire(Path({str(tmp_path)!r}));"
            f"print(holder(Path({str(tmp_path)!r}))); release(mine)")
    run = subprocess.run([sys.executable, "-S", "-c", code], pass_fds=[descriptor], text=True,
                         env={**os.environ, INHERITED: str(descriptor)}, capture_output=True)
    assert re.fullmatch(r"process \d+ on \S+", run.stdout.strip()), run.stderr
    assert holder(tmp_path) is None  # the kernel knows one lock, whoever has inherited it
    os.close(descriptor)


def test_a_preempted_job_checkpoints_and_goes_on_by_itself(tmp_path):
    """What Slurm does before a time limit: submitit's signal to the job, and to it alone."""
    first = quick(tmp_path, 1, PATIENT)
    again = quick(tmp_path, 1, "print('goes on after a', open('ended').read())")
    work = Work(first.folder, first.command("--overwrite"), again.command("--resume"))
    process, = Submitit("local", tmp_path / "logs", 1, {}).start([work])
    parent = wait_for(first.folder / "parent")
    assert process.poll() is None
    os.kill(int(parent), signal.SIGUSR2)
    assert ended(process) == 0
    assert (first.folder / LOG).read_text() == "goes on after a checkpoint\n"


def test_a_job_that_its_host_lost_has_failed_and_says_why(tmp_path):
    class Lost:
        job_id, paths = "7", type("Paths", (), {"stderr": "7_log.err"})

        def done(self, force_check):
            return True

        def result(self):
            raise submitit.core.utils.UncompletedJobError("NODE_FAIL")

    process = _Submitted("slurm", Lost(), tmp_path / "run" / LOG)
    assert process.poll() == process.poll() == 1
    assert (tmp_path / "run" / LOG).read_text() == "NODE_FAIL\njob 7 failed, see 7_log.err\n"


def wait_for(path):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.02)
    raise TimeoutError(path)


def ended(process):
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return process.poll()


# --- Slurm, played by four small programs

PLAYED = {
    "sbatch": """
import re
text = open(sys.argv[1]).read()
count = int(re.search(r"--array=0-(\\d+)", text).group(1)) + 1
open(ROOT + "/batch.sh", "w").write(text)
for index in range(count):
    environment = {**os.environ, "SLURM_JOB_ID": str(100 + index), "SLURM_ARRAY_JOB_ID": "100",
                   "SLURM_ARRAY_TASK_ID": str(index), "SLURM_CPUS_PER_TASK": "5"}
    environment.pop("OMP_NUM_THREADS", None)
    # Only the first job gets a place; the others wait.
    if index == 0:
        process = subprocess.Popen(["bash", sys.argv[1]], env=environment, start_new_session=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        open(ROOT + "/pid", "w").write(str(process.pid))
print("Submitted batch job 100")
""",
    "srun": """
words = sys.argv[1:]
output = words[words.index("--output") + 1].replace("%A_%a", "100_0").replace("%t", "0")
words = words[words.index("--error") + 2:]
sys.stdout = open(output, "w")
os.dup2(sys.stdout.fileno(), 1)
open(ROOT + "/pid", "w").write(str(os.getpid()))
os.execvp(words[0], words)
""",
    "scancel": """
import signal
open(ROOT + "/cancelled", "a").write(sys.argv[1] + " ")
if sys.argv[1] == "100_0":
    try:
        os.kill(int(open(ROOT + "/pid").read()), signal.SIGTERM)
    except ProcessLookupError:
        pass
""",
    "sacct": """
cancelled = open(ROOT + "/cancelled").read() if os.path.exists(ROOT + "/cancelled") else ""
print("JobID|State|NodeList")
for name, state in (("100_0", "RUNNING"), ("100_1", "PENDING")):
    print(name + "|" + ("CANCELLED by 7" if name in cancelled else state) + "|here")
""",
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder with Slurm's commands, first on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, code in PLAYED.items():
        head = f"#!{sys.executable} -S\nimport os, subprocess, sys\nROOT = {str(folder)!r}\n"
        (folder / name).write_text(head + code)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_slurm_gets_one_array_with_the_parameters_and_gives_the_status(slurm, tmp_path):
    launcher = Submitit("slurm", tmp_path / "logs", 7, {"partition": "gpu", "time": 90})
    codes = ["print('threads', os.environ['OMP_NUM_THREADS']); raise SystemExit(3)", ""]
    works = [Work(job.folder, job.command("--overwrite"), [])
             for job in (quick(tmp_path, seed, code) for seed, code in enumerate(codes))]
    first, second = launcher.start(works)
    assert (ended(first), second.poll()) == (3, None)
    assert works[0].log.read_text() == "threads 5\n"
    batch = (slurm / "batch.sh").read_text()
    for flag in ("--array=0-1%2", "--partition=gpu", "--time=90", "--job-name=ars"):
        assert f"#SBATCH {flag}\n" in batch
    # A queue that is started again, the first one killed, finds what waits and not what has ended.
    restarted = Submitit("slurm", tmp_path / "logs", 7, {})
    assert restarted.find(works[1].folder).poll() is None
    assert restarted.find(works[0].folder) is None
    launch.stop([second])
    assert second.poll() == 130
    assert restarted.find(works[1].folder) is None


def test_ctrl_c_cancels_what_runs_and_what_waits(slurm, tmp_path, monkeypatch):
    jobs = [quick(tmp_path, seed, PATIENT) for seed in (1, 2)]

    def interrupt(seconds):
        wait_for(jobs[0].folder / "parent")
        raise KeyboardInterrupt

    monkeypatch.setattr(queue, "time", type("Clock", (), {"sleep": staticmethod(interrupt)}))
    with pytest.raises(Stopped):
        run_jobs(jobs, Submitit("slurm", tmp_path / "logs", 7, {}))
    assert (jobs[0].folder / "ended").exists()
    assert set((slurm / "cancelled").read_text().split()) == {"100_0", "100_1"}


# --- options


def options(*words):
    return parse(words)


def test_options_choose_the_launcher(tmp_path):
    assert launcher_of(options("--workers", "3"), tmp_path).capacity == 3
    made = launcher_of(options("--launcher", "submitit-local", "--slurm", "mem=4GB"), tmp_path)
    assert made.cluster == "local"
    assert _parameter("time=240") == ("time", 240)
    assert _parameter("partition=gpu") == ("partition", "gpu")
    assert _parameter('setup=["module load x"]') == ("setup", ["module load x"])


@pytest.mark.parametrize(("words", "message"), [
    (["--slurm", "time=4"], "needs --launcher slurm"),
    (["--launcher", "submitit-local", "--slurm", "time"], "KEY=VALUE"),
    (["--launcher", "submitit-local", "--slurm", "partitoin=x"], "partitoin"),
    (["--launcher", "submitit-local", "--slurm", "time=1:00:00"], "must be a number of minutes"),
    (["--launcher", "submitit-local", "--slurm", "nodes=2"], "one process"),
    (["--launcher", "slurm"], "srun"),
])
def test_what_cannot_be_launched_is_one_clear_error(words, message, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=re.escape(message)):
        launcher_of(options(*words), tmp_path)


def test_without_submitit_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match="uv sync --extra slurm"):
        launcher_of(options("--launcher", "slurm"), tmp_path)


def test_local_processes_have_the_threads_that_were_asked_for(tmp_path):
    work = Work(tmp_path / "work", ["sh", "-c", "echo $OMP_NUM_THREADS"], [])
    process, = Local(2, "3").start([work])
    while process.poll() is None:
        time.sleep(0.01)
    assert work.log.read_text() == "3\n"
