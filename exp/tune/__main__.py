"""Tune optimizers on equal terms, run the winners on fresh seeds, write the leaderboard.

python -m exp.tune TASK [--optimizers a,b,...|all] [--budget N] [--studies N] [--workers N]
python -m exp.tune TASK --ablation: the parts of ARS2-Neo, each with and without
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from exp.harness.cli import BAD_INPUT, COMPLETED, DIVERGED, FAILED, INTERRUPTED
from exp.harness.errors import ConfigError
from exp.harness.run import Interrupted
from exp.jobs.launch import Launcher, Work, stop, stoppable
from exp.jobs.queue import Job, Stopped, run_jobs
from exp.jobs.slurm import add_launcher_options, launcher_of
from exp.tune import score
from exp.tune.ablation import write_ablation
from exp.tune.board import facts_of, terms_of, write_leaderboard
from exp.tune.cells import read_ablation
from exp.tune.space import Goal, all_arms, goal_of, search_space
from exp.tune.study import is_reached, open_storage, prepare, running, until_done, waiting, work

OUTPUTS = Path("outputs")
DEFAULT_ARMS = ("adamw", "muon", "ars2_neo_base", "ars2_neo_aga")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0, 2 bad arguments, 1 something failed, 130 Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        return tune(options)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except (Stopped, Interrupted, KeyboardInterrupt):
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        print(f"error: cannot write: {error}; finished trials are kept", file=sys.stderr)
        return FAILED


def tune(options: argparse.Namespace) -> int:
    """Everything between the arguments and the exit status."""
    goal = goal_of(options.task, options.target, options.cap, options.set)
    arms = all_arms() if options.optimizers == "all" else options.optimizers.split(",")
    if options.ablation:
        arms = list(read_ablation().arms())
    for arm in arms:
        search_space(arm)  # a wrong name is said before anything is made
    folder = options.outputs / "tune"
    url = options.storage or f"sqlite:///{folder / goal.task}.db"
    if options.launcher == "slurm" and url.startswith("sqlite"):
        raise ConfigError(
            "workers on many hosts cannot share an sqlite file: give --storage the path of a "
            f"journal file that all hosts see (--storage {folder / goal.task}.journal) or the URL "
            "of a database server")
    launcher = launcher_of(options, folder / "submitit")
    folder.mkdir(parents=True, exist_ok=True)
    storage = open_storage(url)
    # Study by study, so that what is unfinished is equally unfinished for every arm.
    order = [(arm, number) for number in range(1, options.studies + 1) for arm in arms]
    studies = {key: prepare(goal, *key, options.budget, storage, defaults=not options.ablation)
               for key in order}
    if options.worker:
        for arm, number in order:
            work(goal, arm, number, storage, folder)
        return COMPLETED
    failed = _search(list(studies.values()), options, url, launcher)
    records = {arm: [score.study_record(studies[arm, number])
                     for number in range(1, options.studies + 1)] for arm in arms}
    jobs = {arm: score.fresh_jobs(goal, arm, records[arm], folder, options.fresh_seeds)
            for arm in arms}
    missing = [job for group in jobs.values() for job in group if not _is_finished(job)]
    ended = run_jobs(missing, launcher)
    paper = options.outputs / "paper"
    fresh = {arm: fresh_runs(goal, jobs[arm]) for arm in arms}
    if options.ablation:
        write_ablation(paper, read_ablation(), terms_of(goal, options.budget), facts_of(fresh),
                       {arm: {"studies": records[arm], "fresh": fresh[arm]} for arm in arms})
        print(f"written to {paper}: ablation_{goal.task}.md, ablation_{goal.task}.json")
    else:
        write_leaderboard(goal, records, fresh, options.budget, paper)
        print(f"written to {paper}: leaderboard.md, leaderboard.html, leaderboard.json")
    failed |= any(code not in (COMPLETED, DIVERGED) for code in ended.values())
    return FAILED if failed else COMPLETED


def _is_finished(job: Job) -> bool:
    return bool(score.fresh_records([job]))


def _search(studies: list, options: argparse.Namespace, url: str, launcher: Launcher) -> bool:
    """Run what waits with worker processes; whether one of them failed.

    Raises Stopped after Ctrl-C or SIGTERM, when every worker has put its trial back.
    """
    total = sum(map(waiting, studies))
    if not total and not sum(map(running, studies)):
        return False
    command = [sys.executable, "-m", "exp.tune", options.task, "--budget", str(options.budget),
               "--studies", str(options.studies), "--storage", url,
               "--outputs", str(options.outputs), "--worker"]
    command += ["--ablation"] if options.ablation else ["--optimizers", options.optimizers]
    command += [] if options.target is None else ["--target", str(options.target)]
    command += [] if options.cap is None else ["--cap", str(options.cap)]
    command += [word for item in options.set for word in ("--set", item)]
    log_path = options.outputs / "tune" / "workers.log"
    workers = launcher.start([Work(command, command, log_path)] * options.workers)
    try:
        with stoppable(), tqdm(total=total, unit="trial", dynamic_ncols=True, smoothing=0,
                               disable=not sys.stderr.isatty()) as bar:
            shown = total

            def show(left: int, under_way: int) -> None:
                nonlocal shown
                bar.set_postfix_str(f"{under_way} running")
                bar.update(total - left - bar.n)
                if bar.disable and left != shown:  # into a log: a line where there is news
                    print(f"{total - left} of {total} trials taken, {under_way} running",
                          file=sys.stderr, flush=True)
                shown = left

            until_done(studies, show, lambda: any(w.poll() is None for w in workers))
            while any(worker.poll() is None for worker in workers):
                time.sleep(0.2)
    except KeyboardInterrupt:
        stop(workers)
        raise Stopped from None
    except BaseException:
        stop(workers)
        raise
    codes = [worker.poll() for worker in workers]
    if any(codes):
        print(f"a worker failed, see {log_path}", file=sys.stderr)
    return any(codes)


def fresh_runs(goal: Goal, jobs: Sequence[Job]) -> list[dict]:
    """The finished runs of an arm's winners, each with whether it reached the target."""
    fresh = score.fresh_records(jobs)
    return [{**run, "reached": run["status"] == "completed" and any(
        is_reached(goal, value) for value in run["curve"].get(goal.metric, []))} for run in fresh]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m exp.tune",
        description="Search every optimizer's SEARCH_SPACE with the same budget.")
    parser.add_argument("task", metavar="TASK", help="grokking, cifar or wikitext2")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--optimizers", default=",".join(DEFAULT_ARMS), metavar="A,B",
                       help="names, arms of exp/tune/tasks.toml, or all (default: "
                            f"{','.join(DEFAULT_ARMS)})")
    which.add_argument("--ablation", action="store_true",
                       help="one arm for every combination of ARS2-Neo's parts; writes "
                            "ablation_<task>.md in place of the leaderboard")
    parser.add_argument("--budget", type=_positive, default=10, metavar="N",
                        help="quasi-random trials a study (default 10)")
    parser.add_argument("--studies", type=_positive, default=3, metavar="N",
                        help="independent studies an optimizer (default 3)")
    parser.add_argument("--fresh-seeds", type=_seeds, default=score.FRESH_SEEDS, metavar="N",
                        help="fresh seeds a winner is run on (default 10)")
    parser.add_argument("--workers", type=_positive, default=1, metavar="N",
                        help="trials at a time")
    add_launcher_options(parser)
    parser.add_argument("--target", type=float, help="another target than tasks.toml's")
    parser.add_argument("--cap", type=_positive, metavar="N",
                        help="another cap on a trial's gradient evaluations")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE",
                        help="change the task for every optimizer alike; repeatable")
    parser.add_argument("--storage", metavar="URL",
                        help="an Optuna storage, so that many machines join the same studies "
                             "(default: sqlite:///outputs/tune/<task>.db)")
    parser.add_argument("--outputs", type=Path, default=OUTPUTS, help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _seeds(text: str) -> tuple[int, ...]:
    first = score.FRESH_SEEDS[0]
    return tuple(range(first, first + _positive(text)))


if __name__ == "__main__":
    sys.exit(main())
