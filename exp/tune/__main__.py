"""Search every optimizer with the same budget, run the winners on fresh seeds, write the board.

python -m exp.tune TASK [--optimizers a,b,...|all] [--studies N] [--trials N] [--workers N]
python -m exp.tune TASK --optimizers MINE [--minutes N]: a challenge, which compares one arm with
    the board that lacks it and leaves the board as it is; adamw,MINE adds the arm to the board
python -m exp.tune TASK --ablation: search every combination of ARS2-Neo's parts
python -m exp.tune TASK --pace: time a gradient evaluation of all winners of a board in one process
python -m exp.tune TASK --sensitivity | --best-known | --transfer FROM: follow-ups to a board
python -m exp.tune --recommend: recommend an arm and setting for each held-out task, with regret
python -m exp.tune TASK --dry-run: list the missing searches with an upper bound of their duration
python -m exp.tune --render: write the pages of every board from its JSON
python -m exp.tune --check: recompute every published number with independent code
python -m exp.tune TASK --verify: train a random fresh run of every arm again, compare bit for bit
"""

import argparse
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from exp.tune.options import AMOUNTS, parse

if __name__ == "__main__":
    parse()  # answers --help and mistyped options before torch is imported

from data import DataError
from exp.harness.arguments import BAD_INPUT, COMPLETED, FAILED, INTERRUPTED
from exp.harness.errors import ConfigError
from exp.harness.lock import acquire, holder, release
from exp.harness.recipes import ROOT
from exp.harness.task import task_named
from exp.jobs.queue import Stopped, run_jobs
from exp.jobs.slurm import launcher_of
from exp.report.forecast import forecast, total
from exp.tune.arms import Arm, all_arms, arm_named, own_arms
from exp.tune.board import (
    board_path,
    entry_of,
    interim_path,
    published,
    published_study,
    read_board,
    require_board,
    require_terms,
    save,
    whole_studies,
    write_board,
    write_configs,
    write_interim,
    write_page,
)
from exp.tune.cells import ADAMW_CELL, read_ablation
from exp.tune.chain import Chain
from exp.tune.challenge import challenge
from exp.tune.check import check_board
from exp.tune.distinct import require_distinct, unfit
from exp.tune.follow_up import ask, write_follow_up
from exp.tune.pace import time_winners
from exp.tune.recommend import recommend, write_recommendations
from exp.tune.terms import numbers_of, rung, terms_of
from exp.tune.verify import reproduced


@dataclass(frozen=True)
class Search:
    """The requested arms and terms, the `finished` board at `path`, and the board in progress,
    `begun`. Both boards are empty (no arms) where there is no file, or --replace drops it."""

    path: Path
    terms: dict
    arms: list[Arm]
    finished: dict
    begun: dict

    @property
    def standing(self) -> dict:
        """The finished board, or else the one in progress."""
        return self.finished if self.finished["arms"] else self.begun

    @property
    def is_challenge(self) -> bool:
        """Whether the only arm is one that an existing board lacks. The noise arm and the rungs
        belong to the design of the board."""
        known = {self.terms["noise_arm"], *self.terms.get("ladder", ()), *self.standing["arms"]}
        return (bool(self.standing["arms"]) and len(self.arms) == 1
                and self.arms[0].name not in known)

    def compared(self) -> list[Arm]:
        """Return the arms of the existing board and the requested ones."""
        requested = {arm.name for arm in self.arms}
        return [*(Arm.of(name, entry) for name, entry in self.standing["arms"].items()
                  if name not in requested), *self.arms]

    def without_unfit(self) -> "Search":
        """Return the search without arms that cannot be trained on this task or equal an earlier
        arm there. Print the reasons."""
        left_out = dict(unfit(self.compared(), self.terms))
        for reason in left_out.values():
            print(f"left out: {reason}")
        return replace(self, arms=[arm for arm in self.arms if arm.name not in left_out])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Return the exit status: 0, 1 failed or incomplete, 2 bad input, 130
    Ctrl-C."""
    options = parse(arguments)
    try:
        if options.render:
            return render(options.outputs)
        if options.check:
            return check(options.outputs)
        if options.pace:
            return pace(options)
        if options.verify:
            return verify(options)
        if options.recommend:
            print(f"written: {recommend(options.outputs)}")
            return COMPLETED
        if options.sensitivity or options.best_known or options.transfer:
            return follow_up(options)
        search = read_search(options)
        if options.minutes and not search.is_challenge:
            raise ConfigError("--minutes limits a challenge: one optimizer that the board of "
                              f"{options.task} does not have")
        if options.dry_run:
            print(forecast(durations(search, missing_of(search, options)[1])))
            return COMPLETED
        if search.is_challenge:
            has_result = challenge(search.standing, search.arms[0], options.outputs,
                                   max(2, options.workers), options.minutes)
            return COMPLETED if has_result else FAILED
        return tune(search, options)
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except (Stopped, KeyboardInterrupt):
        print("interrupted; the same command continues from here", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        print(f"error: cannot write: {error}; finished trials are kept", file=sys.stderr)
        return FAILED


def read_search(options: argparse.Namespace) -> Search:
    """Return the search that the options describe. Raises ConfigError for invalid settings, for
    terms that differ from the existing board's, without --replace, and for another number of
    studies of the same searches."""
    path = board_path(options.outputs, options.task + "_ablation" * options.ablation)
    finished, interim = read_board(path), read_board(interim_path(path))
    terms = _terms(options, finished or interim)
    for board in (finished, interim):
        _require_announced(board, terms, options.replace)
    boards = [require_terms(board, terms, options.replace) for board in (finished, interim)]
    user_arms = own_arms(options.arms) if options.arms else {}
    arms = [arm_named(name, rung(terms, name)["cap"], user_arms)
            for name in _names(options, terms)]
    search = Search(path, terms, arms, *boards)
    return search.without_unfit() if options.optimizers == "all" else search


def tune(search: Search, options: argparse.Namespace) -> int:
    """Run the missing chains, study by study for all arms, and publish the arms whose studies are
    complete. Return the exit status: 1 if an arm is not complete. Raises ConfigError."""
    terms, arms = search.terms, search.arms
    studies, missing = missing_of(search, options)
    launcher = launcher_of(options, options.outputs / "tune" / "submitit")
    paper = options.outputs / "paper"
    if missing:
        if options.optimizers != "all":
            require_distinct(search.compared(), terms)
        print(total(durations(search, missing)), flush=True)

    def update_interim() -> None:
        """Write the board in progress while none is finished, and only if it keeps all arms."""
        if not 0 < whole_studies(_by_arm(studies)) < terms["studies"] or search.finished["arms"]:
            return
        with _exclusive(options):
            begun = require_terms(read_board(interim_path(search.path)), terms, options.replace)
            if begun["arms"].keys() <= _by_arm(studies).keys():
                write_interim(interim_path(search.path), terms, arms, _by_arm(studies))

    def keep_study(chain: Chain, _status: int) -> None:
        before = whole_studies(_by_arm(studies))
        studies[chain] = chain.study()
        if studies[chain]:
            chain.keep_in(paper)
        if before < whole_studies(_by_arm(studies)):
            update_interim()

    update_interim()
    run_jobs(missing, launcher, keep_study)
    with _exclusive(options):
        status = publish(options, search, _by_arm(studies))
    for chain in studies if status == COMPLETED else ():  # the board now holds these studies
        shutil.rmtree(chain.kept_in(paper).folder, ignore_errors=True)
    return status


def missing_of(search: Search, options: argparse.Namespace
               ) -> tuple[dict[Chain, dict | None], list[Chain]]:
    """Return (studies, missing): chain -> its finished study or None, and the chains without one.
    Raises ConfigError for invalid settings, and for fewer studies than finished ones announced."""
    terms, paper = search.terms, options.outputs / "paper"
    chains = sorted((Chain(arm, number, rung(terms, arm.name),
                           _folder(options, arm.name, number))
                     for arm in search.arms for number in numbers_of(arm.name, terms)),
                    key=lambda chain: chain.number % terms["studies"] or terms["studies"])
    for chain in chains:
        _ = chain.plan  # raises ConfigError for invalid settings before anything is written
        announced = max(chain.announced(), chain.kept_in(paper).announced())
        if announced > terms["studies"]:
            raise ConfigError(f"{chain.name} was run as one of {announced} studies: their number "
                              "cannot be reduced once results are known")
    studies = {chain: chain.study() or chain.kept_in(paper).study()
               or published_study(search.finished, chain)
               or published_study(search.begun, chain) for chain in chains}
    return studies, [chain for chain in chains if studies[chain] is None]


def durations(search: Search, missing: Sequence[Chain]) -> dict[str, float | None]:
    """Return an upper bound of each chain's seconds: every run to its cap, at the arm's pace on the
    existing board; None for an arm that is not on it."""
    paces = {name: arm["ms_per_evaluation"] / 1000
             for name, arm in search.standing["arms"].items()}
    return {chain.name: paces[chain.arm.name] * chain.terms["cap"]
            * (chain.terms["trials"] + chain.terms["fresh_seeds"])
            if chain.arm.name in paces else None for chain in missing}


def publish(options: argparse.Namespace, search: Search, studies: dict[str, list[dict | None]]
            ) -> int:
    """Add the arms whose studies are complete to the board, as it is now, and write their configs.
    Return the exit status: 1 if an arm is not complete."""
    path = search.path
    board = require_terms(read_board(path), search.terms, options.replace)
    unfinished = [name for name, of_arm in studies.items() if None in of_arm]
    done = [arm for arm in search.arms if arm.name not in unfinished]
    if done:
        whole = {arm.name: [study for study in studies[arm.name] if study] for arm in done}
        write_board(path, board, done, whole)
        configs = (ROOT if options.outputs.resolve() == ROOT / "outputs" else options.outputs
                   ) / "config" / "tuned"
        write_configs(configs, board["terms"], done, whole)
        print(f"written: {path}, {path.stem}.md beside it, {configs}")
    if unfinished:
        print(f"not finished, and not published: {', '.join(unfinished)}; the same command "
              "continues from here", file=sys.stderr)
        return FAILED
    for suffix in (".json", ".md", ".png"):
        interim_path(path).with_suffix(suffix).unlink(missing_ok=True)
    return COMPLETED


def _by_arm(studies: dict[Chain, dict | None]) -> dict[str, list[dict | None]]:
    """Group the studies by arm, in the order of `studies`."""
    names = dict.fromkeys(chain.arm.name for chain in studies)
    return {name: [study for chain, study in studies.items() if chain.arm.name == name]
            for name in names}


def pace(options: argparse.Namespace) -> int:
    """Time a gradient evaluation of each winner of a board and save the board."""
    path = board_path(options.outputs, options.task)
    timed = require_board(path)
    time_winners(timed)
    with _exclusive(options):
        board = require_board(path)  # a search may have added arms in the meantime
        for name in board["arms"].keys() & timed["arms"].keys():
            board["arms"][name] |= {key: timed["arms"][name][key]
                                    for key in ("ms_per_evaluation", "paced")}
        save(path, board)
    return COMPLETED


def follow_up(options: argparse.Namespace) -> int:
    """Run the follow-up that the options name. It needs a finished board; --best-known also accepts
    one in progress, and runs only the hand-set recipes where there is no board."""
    path = board_path(options.outputs, options.task)
    if options.best_known and not path.exists():
        board = read_board(interim_path(path)) or _without_studies(read_search(options))
    else:
        board = require_board(path)
    source = (require_board(board_path(options.outputs, options.transfer)) if options.transfer
              else None)
    question = ("transfer" if source else "sensitivity" if options.sensitivity else "best_known")
    launcher = launcher_of(options, options.outputs / "tune" / "submitit")
    print(f"written: {ask(question, board, options.outputs, launcher, source)}")
    return COMPLETED


def _without_studies(search: Search) -> dict:
    return {"terms": search.terms, "arms": {arm.name: entry_of(arm, []) for arm in search.arms}}


def check(outputs: Path) -> int:
    """Recompute every number of every board and print the problems. Return 1 if there is any."""
    status = COMPLETED
    for path in published(outputs):
        problems = check_board(require_board(path))
        print("\n".join([f"{path.name}: {len(problems)} problems", *problems]))
        status = FAILED if problems else status
    return status


def verify(options: argparse.Namespace) -> int:
    """Train a random fresh run of every arm of a board again and print whether its curve is the
    board's. Return 1 if one is not."""
    board = require_board(board_path(options.outputs, options.task))
    studies = {name: random.choice(entry["studies"]) for name, entry in board["arms"].items()}
    records = {name: (study, random.choice(study["fresh"])) for name, study in studies.items()}
    equal = reproduced(board, records, options.outputs, options.workers)
    for name, (study, run) in records.items():
        print(f"{name}, study {study['number']}, seed {run['seed']}: "
              f"{'equal bit for bit' if equal[name] else 'differs from the board'}")
    return COMPLETED if all(equal.values()) else FAILED


def render(outputs: Path) -> int:
    """Write the pages of all boards and follow-ups from their JSON."""
    for path in published(outputs):
        write_page(path)
    for path in sorted((outputs / "paper" / "follow_up").glob("*.json")):
        require_board(path)  # raises ConfigError for a damaged file
        write_follow_up(path, outputs)
    write_recommendations(outputs / "paper" / "recommend.json")
    return COMPLETED


def _terms(options: argparse.Namespace, standing: dict | None) -> dict:
    """Return the terms of this search. Without options, the numbers of studies, trials and fresh
    seeds are those of the standing board, unless --replace drops it."""
    previous = standing["terms"] if standing and not options.replace else {}
    requested = {"target": options.target, "cap": options.cap,
                 **{key: getattr(options, key) or previous.get(key) for key in AMOUNTS}}
    terms = terms_of(task_named(options.task), requested, options.set)
    return terms | ({"baseline": ADAMW_CELL, "noise_arm": None} if options.ablation else {})


def _require_announced(board: dict | None, terms: dict, replace: bool) -> None:
    """Raise ConfigError if --replace would only change the number of studies of a board, which is
    announced before the first result is seen."""
    kept = board["terms"] if board else terms
    others = {key for key in terms if kept.get(key) != terms[key]} - {
        *AMOUNTS, "sampler", "study_seeds"}
    if replace and not others and kept["studies"] != terms["studies"]:
        raise ConfigError(f"the board of {terms['task']} announced {kept['studies']} studies, and "
                          "their number cannot change once results are known: keep it, or search "
                          "anew with another --outputs")


@contextmanager
def _exclusive(options: argparse.Namespace) -> Iterator[None]:
    """Wait for and lock the boards of a task, so that parallel commands do not overwrite each
    other's."""
    folder = options.outputs / "tune" / options.task
    folder.mkdir(parents=True, exist_ok=True)
    while holder(folder):  # for the seconds that writing a board takes
        time.sleep(0.5)
    lock = acquire(folder)
    try:
        yield
    finally:
        release(lock)


def _names(options: argparse.Namespace, terms: dict) -> list[str]:
    """Return the names of the requested arms. On an annealed board the baseline adds the other
    rungs of its ladder."""
    names = all_arms() if options.optimizers == "all" else options.optimizers.split(",")
    if options.ablation:
        names = list(read_ablation().arms())
    rungs = terms.get("ladder", ()) if terms["baseline"] in names else ()
    return [*names, *(name for name in rungs if name not in names)]


def _folder(options: argparse.Namespace, arm: str, number: int) -> Path:
    return options.outputs / "tune" / options.task / arm / f"study{number}"


if __name__ == "__main__":
    sys.exit(main())
