"""A challenge: compare one new arm with a board, and read the result after each study.

The arm gets the board's points, seeds and sampler, study by study. The anytime interval and the
e-value stay valid under optional stopping, so a challenge may be interrupted and continued at will.
Its partners are the studies of the baseline, then those of the noise arm, which is the baseline on
further studies. It writes a board of its own: the arm's studies and those of the baseline, and of
the board's other arms as long as these have as many.
"""

import inspect
import math
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from exp.harness.errors import ConfigError
from exp.harness.facts import source_hash
from exp.harness.recipes import ROOT
from exp.jobs.launch import Local
from exp.jobs.queue import run_jobs
from exp.report.judgement import holm
from exp.report.tables import number
from exp.tune.arms import Arm
from exp.tune.board import entry_of, read_board, require_board, save
from exp.tune.chain import Chain
from exp.tune.distinct import require_distinct
from exp.tune.estimate import OPPOSITE, interim_results
from exp.tune.inference import EQUAL, Ladder, anytime_studies, e_value, wins_a_study
from exp.tune.page import SIGN
from exp.tune.terms import IN_PROGRESS
from exp.tune.verify import reproduced, threads_of
from optimizer import optimizer_class

LEAST = 6  # minimum of studies before an interval that excludes 1 ends a challenge


class Over(Exception):
    """Ends a challenge: the result is decided, or the time is up."""


def challenge(board: dict, arm: Arm, outputs: Path, workers: int, minutes: float | None) -> bool:
    """Run studies of the arm until the result is decided, no partner is left or `minutes` have
    passed, and print the result. Return False if there is none yet.

    Raises ConfigError for an arm that equals one of the board's, and for one whose file has changed
    since its first run.
    """
    duel = Duel(board, arm, outputs)
    duel.announce()
    duel.require_unchanged()
    with _limited(minutes):
        require_distinct([*(Arm.of(*entry) for entry in board["arms"].items()), arm],
                         board["terms"])
        duel.choose_partners(workers)
        duel.run(workers)
    if not duel.pairs():
        print("no result yet: the time was up before this machine was checked or a study was "
              "complete; the same command continues from here", file=sys.stderr)
        return False
    print(*duel.sentences(duel.write()), f"written: {duel.path}", sep="\n")
    return True


@contextmanager
def _limited(minutes: float | None) -> Iterator[None]:
    """Raise `Over` within the context after `minutes`, never if None. Suppress `Over` on exit."""
    def raise_over(*_: object) -> None:
        raise Over

    before = signal.signal(signal.SIGALRM, raise_over)
    signal.setitimer(signal.ITIMER_REAL, 60 * (minutes or 0))
    try:
        yield
    except Over:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Duel:
    """The arm's studies beside the baseline's. reruns: whether the baseline's studies run here too,
    because this machine does not reproduce the board's; None until `choose_partners`."""

    board: dict
    arm: Arm
    outputs: Path
    reruns: bool | None = None

    @property
    def terms(self) -> dict:
        """The board's terms."""
        return self.board["terms"]

    @property
    def baseline(self) -> str:
        """Name of the baseline."""
        return self.terms["baseline"]

    @cached_property
    def published(self) -> list[dict]:
        """The board's studies 1, 2, ... of the baseline, those of the noise arm included."""
        names = (self.baseline, self.terms["noise_arm"])
        studies = [study for name in names if name in self.board["arms"]
                   for study in self.board["arms"][name]["studies"]]
        return [study for place, study in enumerate(studies, 1) if study["number"] == place]

    @cached_property
    def mine(self) -> list[Chain]:
        """The arm's chains, as many as there are partners."""
        return self._chains(self.arm)

    @cached_property
    def theirs(self) -> list[Chain]:
        """The baseline's chains, for a machine that does not reproduce the board's."""
        return self._chains(Arm.of(self.baseline, self.board["arms"][self.baseline]))

    def _chains(self, arm: Arm) -> list[Chain]:
        folder = self.outputs / "tune" / self.terms["task"] / arm.name
        return [Chain(arm, study["number"], self.terms, folder / f"study{study['number']}")
                for study in self.published]

    @cached_property
    def path(self) -> Path:
        """Path of the challenge's board. The name of the task is added where the arm has
        challenged another task."""
        name, task = self.arm.name.replace(":", "_"), self.terms["task"]
        path = self.outputs / "challenge" / f"{name}.json"
        other = read_board(path)
        return path if other is None or other["terms"]["task"] == task else (
            path.with_name(f"{name}-{task}.json"))

    @cached_property
    def common(self) -> int:
        """Number of studies that all arms of the board have."""
        return min(len(entry["studies"]) for entry in self._others().values())

    def _others(self) -> dict[str, dict]:
        """Return the board's arms without the noise arm and the rungs."""
        excluded = (self.terms["noise_arm"], *self.terms.get("ladder", ()))
        return {name: entry for name, entry in self.board["arms"].items() if name not in excluded}

    def pairs(self) -> list[tuple[dict, dict]]:
        """Return (the arm's study, the baseline's) of the first studies that both have."""
        if self.reruns is None:
            return []
        partners = map(self._study, self.theirs) if self.reruns else self.published
        pairs = []
        for mine, theirs in zip(map(self._study, self.mine), partners, strict=True):
            if not mine or not theirs:
                break
            pairs.append((mine, theirs))
        return pairs

    def _study(self, chain: Chain) -> dict | None:
        return chain.study() or chain.kept_in(self.outputs / "paper").study()

    # --- the runs

    def announce(self) -> None:
        """Print what runs, the search space beside the baseline's, and earlier challenges."""
        theirs = self.board["arms"][self.baseline]["axes"]
        print(f"A challenge: the board of {self.terms['task']} is not changed. To add the arm to "
              f"it: --optimizers {self.baseline},{self.arm.name}")
        for key, axis in self.arm.record()["axes"].items():
            print(f"search range of {key}: {_span(axis)} ({self.baseline}: "
                  f"{_span(theirs.get(key))})")
        earlier = [path.stem for path in sorted(self.path.parent.glob("*.json"))
                   if path != self.path
                   and require_board(path)["terms"]["task"] == self.terms["task"]]
        if earlier:
            print(f"Challenge {len(earlier) + 1} of this board; the others: {', '.join(earlier)}")

    def require_unchanged(self) -> None:
        """Raise ConfigError if the file of the arm's rule differs from the one of a kept run. Files
        outside this project are not compared."""
        file = Path(inspect.getfile(optimizer_class(self.arm.optimizer["name"])))
        if not file.is_relative_to(ROOT):
            return
        path = file.relative_to(ROOT).as_posix()
        for chain in self.mine:
            if chain.sources(path) - {source_hash(file)}:
                raise ConfigError(f"{path} has changed since {chain.name} began: a changed rule is "
                                  "a new arm, so give it another name (or delete "
                                  f"{chain.folder.parent})")

    def choose_partners(self, workers: int) -> None:
        """Train a fresh run of the baseline again. If its curve is not the board's bit for bit, the
        baseline's studies run here too."""
        first = self.published[0]
        self.reruns = not reproduced(self.board, {self.baseline: (first, first["fresh"][0])},
                                     self.outputs, workers)[self.baseline]
        if self.reruns:
            print(f"This machine does not reproduce the board's {self.baseline} bit for bit: its "
                  "studies run here too, and the board's other arms are not compared.")

    def run(self, workers: int) -> None:
        """Run the missing studies, and print the result after each. Raises Over when it is decided.
        """
        known = 0

        def read_result(_chain: Chain | None = None, _status: int = 0) -> None:
            nonlocal known
            count = len(self.pairs())
            if count > known:
                known = count
                row = self.row(self.write())
                print(self.line(row), flush=True)
                if self.is_decided(row):
                    raise Over

        read_result()
        chains = [chain for pair in zip(self.mine, self.theirs, strict=True)
                  for chain in pair[:2 if self.reruns else 1]]
        run_jobs([chain for chain in chains if self._study(chain) is None],
                 Local(workers, threads_of(self.published[0])), read_result)

    def write(self) -> dict:
        """Write the challenge's own board and return it."""
        pairs = self.pairs()
        count = len(pairs)
        arms = {self.baseline: {**self.board["arms"][self.baseline],
                                "studies": [theirs for _, theirs in pairs]}}
        if count <= self.common and not self.reruns:
            arms |= {name: {**entry, "studies": entry["studies"][:count]}
                     for name, entry in self._others().items()}
        arms[self.arm.name] = entry_of(self.arm, [mine for mine, _ in pairs])
        terms = {**self.terms, "studies": len(self.mine), "noise_arm": None, "ladder": {},
                 "challenge": self.arm.name}
        content = {"schema": IN_PROGRESS, "terms": terms, "arms": arms,
                   "results": interim_results(terms, arms, count)}
        save(self.path, content)
        return content

    # --- the result

    def row(self, content: dict) -> dict:
        """Return the arm's results in the challenge's own board."""
        return content["results"]["arms"][self.arm.name]

    def is_decided(self, row: dict) -> bool:
        """Whether the anytime interval lies within the board's margin of equality, which on an
        annealed board concerns budgets, or excludes 1 after six studies. A bound does not decide
        against its own side."""
        if "anytime" not in row:
            return False
        low, high = row["anytime"]
        ladder = Ladder.of(self.terms, {name: row["values"] for name, row
                                        in self.board["results"]["arms"].items()})
        ends = [ladder.budget(math.log(end)) for end in (low, high)] if ladder else [low, high]
        equal = min(ends) >= 1 - EQUAL and max(ends) <= 1 + EQUAL and not row["bound"]
        return equal or (len(row["values"]) >= LEAST and not low <= 1 <= high
                         and row["bound"] not in ("unknown", OPPOSITE[_side(row["ratio"])]))

    def line(self, row: dict) -> str:
        """Return the result after a study in one line."""
        count = len(row["values"])
        if count < 2:
            return f"study {count}: complete"
        end = "; may stop" if self.is_decided(row) else ""
        return (f"study {count}: ratio {SIGN[row['bound']]}{number(row['ratio'])}"
                f"{_anytime(row)}, e {number(row['e'])}{end}")

    def sentences(self, content: dict) -> list[str]:
        """Return three sentences: the arm against the baseline, against the board, and what would
        decide the rest."""
        row, name, base = self.row(content), self.arm.name, self.baseline
        d = np.subtract(row["values"], content["results"]["arms"][base]["values"])
        count = len(d)
        if count < 2:
            return [f"{name}: one study is complete; a comparison needs two."]
        mean, own = float(d.mean()), float(d.var(ddof=1))
        pooled = content["results"]["pooled_sd"]**2
        wins = wins_a_study(mean, own, pooled, count)
        return [
            f"{name} costs {SIGN[row['bound']]}{number(row['ratio'])} times what {base} does"
            f"{_anytime(row) or ', no interval before the fourth study'}, after {count} studies; "
            f"one more study of both would find it cheaper with probability {wins:.2f}.",
            self._against_board(row, d),
            self._remaining(content, anytime_studies(mean, own, pooled, max(count, LEAST)))]

    def _against_board(self, row: dict, against_baseline: np.ndarray) -> str:
        """Return the comparison with each arm over common studies, corrected by Holm."""
        d, misses = {self.baseline: against_baseline}, {}
        if not self.reruns:
            for name in self._others().keys() - {self.baseline}:
                theirs = self.board["results"]["arms"][name]
                length = min(len(row["values"]), self.common)
                d[name] = np.subtract(row["values"][:length], theirs["values"][:length])
                misses[name] = any(theirs["censored"][:length])
        ours = any(row["censored"])
        adjusted = dict(zip(d, holm([min(1.0, 1 / e_value(of_arm)) for of_arm in d.values()]),
                            strict=True))
        sides: dict[str, list[str]] = {"cheaper than": [], "dearer than": [],
                                       "undecided against": []}
        for name in sorted(d):
            theirs = misses.get(name, row["bound"] in ("at most", "unknown"))
            cheaper = d[name].mean() < 0
            decided = adjusted[name] <= self.terms["alpha"] and not (ours if cheaper else theirs)
            sides[("cheaper than" if cheaper else "dearer than") if decided
                  else "undecided against"].append(name)
        return "Against the board, Holm's correction over arms: " + "; ".join(
            f"{side} {', '.join(arms)}" for side, arms in sides.items() if arms) + "."

    def _remaining(self, content: dict, needed: int | None) -> str:
        """Return what would decide the comparison with the baseline, and with the other arms."""
        base, available, row = self.baseline, len(self.mine), self.row(content)
        others = "" if self.reruns else (
            f" The board's other arms have {self.common} studies to compare with.")
        if self.is_decided(row):
            return f"The comparison with {base} is decided.{others}"
        if needed is None or needed > available:
            studies = "more than 1000 studies" if needed is None else f"{needed} studies"
            return (f"If the difference to {base} equals the estimate, {studies} would decide it; "
                    f"{base} has {available}, so this board cannot.{others}")
        count = len(row["values"])
        minutes = sum(content["results"]["arms"][name]["spent"]
                      * content["arms"][name]["ms_per_evaluation"] / count / 6e4
                      for name in (self.arm.name, *([base] if self.reruns else [])))
        more = max(1, needed - count)
        return (f"If the difference to {base} equals the estimate, {more} more studies would "
                f"decide it, about {number(round(more * minutes, 1))} minutes of one core.{others}")


def _side(ratio: float) -> str:
    return "cheaper" if ratio < 1 else "dearer"


def _anytime(row: dict) -> str:
    return ", anytime 95 % interval [{}, {}]".format(*map(number, row["anytime"])) if (
        "anytime" in row) else ""


def _span(axis: list | dict | None) -> str:
    if axis is None:
        return "none"
    return ", ".join(axis["choices"]) if isinstance(axis, dict) else (
        f"{number(axis[0])} to {number(axis[1])}")
