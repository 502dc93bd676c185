"""Search every optimizer with the same budget, run the winners on fresh seeds, write the board.

python -m exp.tune TASK [--optimizers a,b,...|all] [--studies N] [--trials N] [--workers N]
python -m exp.tune TASK --optimizers MINE [--minutes N]: one new arm against the task's board
python -m exp.tune TASK --ablation: the parts of ARS2-Neo, each with and without
python -m exp.tune TASK --pace: milliseconds of an evaluation, all winners of a board side by side
python -m exp.tune TASK --sensitivity | --best-known | --transfer FROM: after a board is finished
python -m exp.tune --recommend: what boards and transfers recommend for a task left out
python -m exp.tune TASK --dry-run: the searches that are missing, and how long they take at most
python -m exp.tune --render: the pages of every board from its JSON
python -m exp.tune --check: every published number, recomputed by itself
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from exp.tune.options import AMOUNTS, parse

if __name__ == "__main__":
    parse()  # answers --help and mistyped options before torch is imported

from exp.harness.arguments import BAD_INPUT, COMPLETED, FAILED, INTERRUPTED
from exp.harness.errors import ConfigError
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
from exp.tune.distinct import require_distinct
from exp.tune.follow_up import ask, write_follow_up
from exp.tune.pace import time_winners
from exp.tune.recommend import recommend
from exp.tune.terms import numbers_of, rung, terms_of


@dataclass(frozen=True)
class Search:
    """What is asked for: the arms on which terms, beside the board that is finished, and the one
    that is in progress, at `path`; `finished` and `begun` have no arms where there is none."""

    path: Path
    terms: dict
    arms: list[Arm]
    finished: dict
    begun: dict

    @property
    def standing(self) -> dict:
        """The board that is there."""
        return self.finished if self.finished["arms"] else self.begun

    @property
    def is_challenge(self) -> bool:
        """Whether it is one new arm against a board."""
        known = self.standing["arms"]
        return bool(known) and len(self.arms) == 1 and self.arms[0].name not in known


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0, 2 bad arguments, 1 something failed, 130 Ctrl-C."""
    options = parse(arguments)
    try:
        if options.render:
            return render(options.outputs)
        if options.check:
            return check(options.outputs)
        if options.pace:
            return pace(options)
        if options.recommend:
            recommend(options.outputs)
            return COMPLETED
        if options.sensitivity or options.best_known or options.transfer:
            return follow_up(options)
        search = read_search(options)
        if options.dry_run:
            print(forecast(durations(search, missing_of(search, options)[1])))
            return COMPLETED
        if search.is_challenge:
            challenge(search.standing, search.arms[0], options.outputs, max(2, options.workers),
                      options.minutes)
            return COMPLETED
        return tune(search, options)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except (Stopped, KeyboardInterrupt):
        print("interrupted; the same command continues from here", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        print(f"error: cannot write: {error}; finished trials are kept", file=sys.stderr)
        return FAILED


def read_search(options: argparse.Namespace) -> Search:
    """What the options ask for. Raises ConfigError for terms that are not the board's."""
    path = board_path(options.outputs, options.task + "_ablation" * options.ablation)
    finished, interim = read_board(path), read_board(interim_path(path))
    terms = _terms(options, finished or interim)
    boards = [require_terms(kept, terms, options.replace) for kept in (finished, interim)]
    own = own_arms(options.arms) if options.arms else {}
    arms = [arm_named(name, rung(terms, name)["cap"], own) for name in _names(options, terms)]
    return Search(path, terms, arms, *boards)


def tune(search: Search, options: argparse.Namespace) -> int:
    """Run what is missing, study by study for all arms, and publish the arms whose studies are
    complete."""
    terms, arms = search.terms, search.arms
    studies, missing = missing_of(search, options)
    launcher = launcher_of(options, options.outputs / "tune" / "submitit")
    paper = options.outputs / "paper"
    if missing:
        require_distinct(arms, terms)
        print(total(durations(search, missing)), flush=True)
    begun = (search.begun["arms"].keys() <= _by_arm(studies).keys()
             and not search.finished["arms"])

    def show() -> None:
        if begun and 0 < whole_studies(_by_arm(studies)) < terms["studies"]:
            write_interim(interim_path(search.path), terms, arms, _by_arm(studies))

    def keep(chain: Chain, _status: int) -> None:
        before = whole_studies(_by_arm(studies))
        studies[chain] = chain.study()
        if studies[chain]:
            chain.keep_in(paper)
        if before < whole_studies(_by_arm(studies)):
            show()

    show()
    run_jobs(missing, launcher, keep)
    status = publish(options, search.path, search.finished, arms, _by_arm(studies))
    for chain in studies if status == COMPLETED else ():  # they are on the board
        shutil.rmtree(chain.kept_in(paper).folder, ignore_errors=True)
    return status


def missing_of(search: Search, options: argparse.Namespace
               ) -> tuple[dict[Chain, dict | None], list[Chain]]:
    """The study of every chain, None where it is not finished, and the chains that are not. Raises
    ConfigError for wrong settings."""
    terms, paper = search.terms, options.outputs / "paper"
    chains = sorted((Chain(arm, number, rung(terms, arm.name),
                           _folder(options, arm.name, number))
                     for arm in search.arms for number in numbers_of(arm.name, terms)),
                    key=lambda chain: chain.number % terms["studies"] or terms["studies"])
    for chain in chains:
        _ = chain.plan  # wrong settings are refused before anything is written
    studies = {chain: chain.study() or chain.kept_in(paper).study()
               or published_study(search.finished, chain)
               or published_study(search.begun, chain) for chain in chains}
    return studies, [chain for chain in chains if studies[chain] is None]


def durations(search: Search, missing: Sequence[Chain]) -> dict[str, float | None]:
    """Seconds of each chain, at most: every run to its cap, at the pace of the arm on the board
    that is there."""
    paces = {name: arm["ms_per_evaluation"] / 1000
             for name, arm in search.standing["arms"].items()}
    return {chain.name: paces[chain.arm.name] * chain.terms["cap"]
            * (chain.terms["trials"] + chain.terms["fresh_seeds"])
            if chain.arm.name in paces else None for chain in missing}


def publish(options: argparse.Namespace, path: Path, board: dict, arms: list[Arm],
            studies: dict[str, list[dict | None]]) -> int:
    """Write the board with the arms whose studies are complete, and their configs."""
    unfinished = [name for name, of_arm in studies.items() if None in of_arm]
    done = [arm for arm in arms if arm.name not in unfinished]
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
    """The studies of each arm, in their order."""
    names = dict.fromkeys(chain.arm.name for chain in studies)
    return {name: [study for chain, study in studies.items() if chain.arm.name == name]
            for name in names}


def pace(options: argparse.Namespace) -> int:
    """Time the winners of a board."""
    path = board_path(options.outputs, options.task)
    board = require_board(path)
    time_winners(board)
    save(path, board)
    return COMPLETED


def follow_up(options: argparse.Namespace) -> int:
    """Ask a question about a finished board; for the best settings known one in progress will do,
    or none: then those set by hand are run."""
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
    """Recompute every number of every board; 1 if one is wrong."""
    status = COMPLETED
    for path in published(outputs):
        problems = check_board(require_board(path))
        print("\n".join([f"{path.name}: {len(problems)} problems", *problems]))
        status = FAILED if problems else status
    return status


def render(outputs: Path) -> int:
    """The pages of every board and of what was asked about it."""
    for path in published(outputs):
        write_page(path)
    for path in sorted((outputs / "paper" / "follow_up").glob("*.json")):
        write_follow_up(path, outputs)
    return COMPLETED


def _terms(options: argparse.Namespace, standing: dict | None) -> dict:
    """The terms of this search: those of the board that stands where nothing else is asked."""
    usual = standing["terms"] if standing and not options.replace else {}
    asked = {"target": options.target, "cap": options.cap,
             **{key: getattr(options, key) or usual.get(key) for key in AMOUNTS}}
    terms = terms_of(task_named(options.task), asked, options.set)
    return terms | ({"baseline": ADAMW_CELL, "noise_arm": None} if options.ablation else {})


def _names(options: argparse.Namespace, terms: dict) -> list[str]:
    """The arms that are asked for; the baseline of an annealed board brings its other budgets."""
    names = all_arms() if options.optimizers == "all" else options.optimizers.split(",")
    if options.ablation:
        names = list(read_ablation().arms())
    asked = terms["baseline"] in names
    return [*names, *(name for name in terms.get("ladder", ()) if asked and name not in names)]


def _folder(options: argparse.Namespace, arm: str, number: int) -> Path:
    return options.outputs / "tune" / options.task / arm / f"study{number}"


if __name__ == "__main__":
    sys.exit(main())
