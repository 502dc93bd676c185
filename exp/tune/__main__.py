"""Tune optimizers on equal terms, run the winners on fresh seeds, write the leaderboard.

python -m exp.tune TASK [--optimizers a,b,...|all] [--budget N] [--studies N] [--workers N]
python -m exp.tune TASK --ablation: the parts of ARS2-Neo, each with and without
python -m exp.tune TASK --pace: what a gradient evaluation takes with each winner, side by side
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from optuna import Study
from optuna.storages import BaseStorage
from tqdm import tqdm

from exp.harness.arguments import (
    BAD_INPUT,
    COMPLETED,
    DIVERGED,
    FAILED,
    INTERRUPTED,
    positive,
)
from exp.harness.errors import ConfigError
from exp.harness.run import Interrupted
from exp.jobs.launch import Launcher, Work, stop, stoppable
from exp.jobs.queue import Job, Stopped, run_jobs
from exp.jobs.slurm import add_launcher_options, launcher_of
from exp.tune import score
from exp.tune.ablation import write_ablation
from exp.tune.board import (
    AMOUNTS,
    BOARD,
    agreed_terms,
    facts_of,
    read_board,
    read_published,
    write_leaderboard,
    write_pace,
)
from exp.tune.cells import read_ablation
from exp.tune.space import Goal, all_arms, goal_of, points, search_space
from exp.tune.storage import open_storage
from exp.tune.study import (
    is_reached,
    prepare,
    running,
    trial_settings,
    unfinished,
    until_done,
    waiting,
    work,
)

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
    for arm in arms:  # a wrong name or override is said before anything is made
        trial_settings(goal, arm, points(search_space(arm), 1, seed=0)[0], 0, goal.cap)
    paper = options.outputs / "paper"
    if options.pace:
        write_pace(goal.task, paper)
        return COMPLETED
    standing = (read_published(paper / f"ablation_{goal.task}.json") if options.ablation
                else read_board(paper / BOARD)["tasks"].get(goal.task))
    terms = agreed_terms(goal, vars(options), arms, standing, options.replace or options.worker)
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
    published = standing["arms"] if standing else {}
    studies = _studies(goal, arms, terms, published, storage, defaults=not options.ablation)
    if options.worker:
        for arm, number in studies:
            work(goal, arm, number, storage, folder)
        return COMPLETED
    if taken := sum("published" in made.user_attrs for made in studies.values()):
        print(f"{taken} of {len(studies)} studies are taken from {paper}", file=sys.stderr)
    failed = _search(list(studies.values()), options, terms, url, launcher)
    left = {made.study_name: unfinished(made, terms["budget"]) for made in studies.values()}
    if any(left.values()):
        print(f"{sum(left.values())} trials are not finished, of "
              f"{', '.join(name for name, count in left.items() if count)}: they are run elsewhere "
              "or their worker died. Nothing is published; the same command goes on from here",
              file=sys.stderr)
        return FAILED
    records = {arm: [score.study_record(goal, arm, studies[arm, number])
                     for number in range(1, terms["studies"] + 1)] for arm in arms}
    seeds = score.fresh_seeds(terms["fresh_seeds"])
    jobs = {arm: score.fresh_jobs(goal, arm, records[arm], folder, seeds) for arm in arms}
    done = {arm: score.fresh_records(group, published.get(arm)) for arm, group in jobs.items()}
    missing = [job for arm, group in jobs.items() for job in group if job not in done[arm]]
    ended = run_jobs(missing, launcher)
    fresh = {arm: fresh_runs(goal, jobs[arm], published.get(arm)) for arm in arms}
    if options.ablation:
        write_ablation(paper, read_ablation(), terms, facts_of(fresh),
                       {arm: {"studies": records[arm], "fresh": fresh[arm]} for arm in arms})
        print(f"written to {paper}: ablation_{goal.task}.md, .png, .json")
    else:
        write_leaderboard(goal, terms, records, fresh, paper)
        print(f"written to {paper}: leaderboard.md, leaderboard.html, leaderboard.json")
    failed |= any(code not in (COMPLETED, DIVERGED) for code in ended.values())
    return FAILED if failed else COMPLETED


def _studies(goal: Goal, arms: Sequence[str], terms: dict, published: dict, storage: BaseStorage,
             defaults: bool) -> dict[tuple[str, int], Study]:
    """(arm, number) -> its study, with the trials that are missing waiting. Study by study, so that
    what is unfinished is equally unfinished for every arm."""
    known = {(arm, number): record for arm, entry in published.items()
             for number, record in enumerate(entry["studies"], 1)}
    return {(arm, number): prepare(goal, arm, number, terms["budget"], seed, storage, defaults,
                                   known.get((arm, number)))
            for number, seed in enumerate(terms["point_seeds"], 1)
            for arm in arms}


def _search(studies: list, options: argparse.Namespace, terms: dict, url: str,
            launcher: Launcher) -> bool:
    """Run what waits with worker processes; whether one of them failed.

    Raises Stopped after Ctrl-C or SIGTERM, when every worker has put its trial back.
    """
    total = sum(map(waiting, studies))
    if not total and not sum(map(running, studies)):
        return False
    command = [sys.executable, "-m", "exp.tune", options.task, "--budget", str(terms["budget"]),
               "--studies", str(terms["studies"]), "--storage", url,
               "--outputs", str(options.outputs), "--worker"]
    command += ["--ablation"] if options.ablation else ["--optimizers", options.optimizers]
    command += [] if options.target is None else ["--target", str(options.target)]
    command += [] if options.cap is None else ["--cap", str(options.cap)]
    command += [word for item in options.set for word in ("--set", item)]
    log_path = options.outputs / "tune" / "workers"
    workers = launcher.start([Work(log_path / str(number), command, command)
                              for number in range(options.workers)])
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


def fresh_runs(goal: Goal, jobs: Sequence[Job], published: dict | None = None) -> list[dict]:
    """The finished runs of an arm's winners, `published` ones included, each with whether it
    reached the target within the cap: a run ends with an epoch, which may lie beyond."""
    def reached(run: dict) -> bool:
        spent, values = (run["curve"].get(key, []) for key in ("gradient_evaluations", goal.metric))
        return run["status"] == "completed" and any(
            is_reached(goal, value) and cost <= goal.cap
            for cost, value in zip(spent, values, strict=True))

    return [{**run, "reached": reached(run)}
            for run in score.fresh_records(jobs, published).values()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m exp.tune",
        description="Search every optimizer's SEARCH_SPACE with the same budget.")
    parser.add_argument("task", metavar="TASK", help="a folder of exp/ that holds a task.toml")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--optimizers", default=",".join(DEFAULT_ARMS), metavar="A,B",
                       help="names, arms of exp/tune/arms.toml, or all (default: "
                            f"{','.join(DEFAULT_ARMS)})")
    which.add_argument("--ablation", action="store_true",
                       help="one arm for every combination of ARS2-Neo's parts; writes "
                            "ablation_<task>.md in place of the leaderboard")
    which.add_argument("--pace", action="store_true",
                       help="nothing is searched: time the winners of the task's leaderboard side "
                            "by side, so that its seconds compare them")
    amounts = parser.add_argument_group(
        "how much for every optimizer", "as the task's leaderboard has it, or for a new one")
    amounts.add_argument("--budget", type=positive, metavar="N",
                         help=f"quasi-random trials a study ({AMOUNTS['budget']})")
    amounts.add_argument("--studies", type=positive, metavar="N",
                         help=f"independent studies an optimizer ({AMOUNTS['studies']})")
    amounts.add_argument("--fresh-seeds", type=positive, metavar="N",
                         help=f"fresh seeds a winner is run on ({AMOUNTS['fresh_seeds']})")
    parser.add_argument("--replace", action="store_true",
                        help="drop a leaderboard that stands on other terms")
    parser.add_argument("--workers", type=positive, default=1, metavar="N",
                        help="trials at a time")
    add_launcher_options(parser)
    parser.add_argument("--target", type=float, help="another target than task.toml's")
    parser.add_argument("--cap", type=positive, metavar="N",
                        help="another cap on a trial's gradient evaluations")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE",
                        help="change the task for every optimizer alike; repeatable")
    parser.add_argument("--storage", metavar="URL",
                        help="an Optuna storage, so that many machines join the same studies "
                             "(default: sqlite:///outputs/tune/<task>.db)")
    parser.add_argument("--outputs", type=Path, default=OUTPUTS, metavar="FOLDER",
                        help="where results are and go to; what its paper/ holds is not run "
                             "again, so that an empty folder begins from nothing "
                             "(default: outputs)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
