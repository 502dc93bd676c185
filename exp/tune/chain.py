"""A chain: the trials of one arm in one study, one after another, then the winner's fresh runs.

python -m exp.tune.chain FOLDER

FOLDER/chain.json is the plan of the search. FOLDER/trials.jsonl has one line per finished trial and
is the complete state of the search. Each run has its own subfolder, and study.json is the result. A
chain that is killed or moved to another machine continues from these files, with the same
suggestions.
"""

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import ClassVar

from data import DataError
from exp.harness.arguments import BAD_INPUT, COMPLETED, INTERRUPTED
from exp.harness.device import keep_freed_memory
from exp.harness.errors import ConfigError
from exp.harness.folder import RunFolder, objects_of, read_object
from exp.harness.lock import acquire, release
from exp.harness.recipes import recipes
from exp.harness.run import Diverged, Interrupted
from exp.harness.task import Task, task_named, train_function
from exp.jobs.finished import data_digest
from exp.jobs.freshness import folder_identity, identity
from exp.jobs.launch import LOG, Work
from exp.jobs.queue import free_name
from exp.report.jsonfile import write_json
from exp.tune.arms import Arm
from exp.tune.options import AMOUNTS
from exp.tune.record import fresh_record, trial_record
from exp.tune.suggest import limit, suggest, winner
from exp.tune.terms import code_of, seeds_of, settings_of

CHECKPOINTS = ("latest.pt", "best.pt")  # deleted when a run has finished


@dataclass(frozen=True, eq=False)
class Chain:
    """A chain as a job of the queue. number: that of the study, from 1."""

    arm: Arm
    number: int
    terms: dict
    folder: Path
    module: ClassVar[str] = "exp.tune.chain"  # the command of a worker: python -m <module>

    @property
    def name(self) -> str:
        """Display name: the arm and the number of the study."""
        return f"{self.arm.name} study {self.number}"

    @cached_property
    def plan(self) -> dict:
        """Content of chain.json: all that a worker needs. Raises ConfigError for bad settings."""
        table = self.table(self.arm.defaults)
        settings = settings_of(self.terms, self.arm, table, 0, self.terms["cap"])
        return json.loads(json.dumps({
            "arm": self.arm.name, "number": self.number, "terms": self.terms,
            **self.arm.record(), "recipes": recipes(settings, self.task)}))

    @property
    def code(self) -> str:
        """Hash of today's RECIPE numbers, to compare with `code` of a study."""
        return code_of(self.plan["recipes"])

    @classmethod
    def read(cls, folder: Path) -> "Chain":
        """Read the chain of a folder. Raises ConfigError if the folder holds none."""
        try:
            plan = read_object(folder / "chain.json")
            return cls(Arm.of(plan["arm"], plan), plan["number"], plan["terms"], folder)
        except KeyError as error:
            raise ConfigError(f"cannot read a chain from {folder}: chain.json is missing or has no "
                              f"{error}") from error

    @property
    def task(self) -> Task:
        """The task that is searched."""
        return task_named(self.terms["task"])

    # --- as a job

    def work(self) -> Work:
        """Write chain.json and return the command that runs the chain. If the folder holds a chain
        on other terms, rename that folder first."""
        path = self.folder / "chain.json"
        if path.exists() and not _continues(read_object(path), self.plan):
            self.folder.rename(free_name(self.folder))
        write_json(self.folder / "chain.json", self.plan, depth=1)
        command = [sys.executable, "-m", self.module, str(self.folder)]
        return Work(self.folder, command, command)

    def outcome(self) -> int | None:
        """Return the exit status if the chain is finished, else None."""
        return COMPLETED if self.study() else None

    def study(self) -> dict | None:
        """Return the folder's finished study on these terms, None if there is none."""
        kept, study = (read_object(self.folder / f"{name}.json") for name in ("chain", "study"))
        if not study or not _continues(kept, self.plan):
            return None
        amounts = len(study["trials"]), len(study["fresh"])
        return study if amounts == (self.terms["trials"], self.terms["fresh_seeds"]) else None

    def announced(self) -> int:
        """Return the number of studies of which the folder's finished study is one, else 0."""
        kept = read_object(self.folder / "chain.json") if self.study() else {}
        return kept.get("terms", {}).get("studies", 0)

    def kept_in(self, paper: Path) -> "Chain":
        """Return the same chain with its folder in outputs/paper. Its study is kept there until all
        studies of the search are finished, so that another machine can continue."""
        return replace(self, folder=paper / "chains" / self.terms["task"]
                       / f"{self.arm.name}-{self.number}")

    def keep_in(self, paper: Path) -> None:
        """Copy the finished study to outputs/paper, see `kept_in`."""
        for name in ("chain", "study"):
            write_json(self.kept_in(paper).folder / f"{name}.json",
                       read_object(self.folder / f"{name}.json"), depth=2)

    def position(self) -> str:
        """Progress, as text: the name and the number of finished trials."""
        return f"{self.name} trial {len(self.trials())}"

    # --- the search

    def trials(self) -> list[dict]:
        """Return the finished trials, at most as many as the terms ask for. Reading stops at the
        first damaged or incomplete line; `run` reads later trials again from their folders."""
        path = self.folder / "trials.jsonl"
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        return list(islice(objects_of(text), self.terms["trials"]))

    def run(self) -> None:
        """Run the missing trials and fresh runs, then write study.json."""
        trials = self.trials()
        while len(trials) < self.terms["trials"]:
            trials.append(self._trial(trials))
            _append(self.folder / "trials.jsonl", trials)
        best = winner(trials)
        seeds = seeds_of(self.number, self.terms["fresh_seeds"])
        fresh = [self._fresh(f"seed{seed}", best["params"], seed) for seed in seeds]
        write_json(self.folder / "study.json", {
            "number": self.number, "seed": self.terms["study_seeds"][str(self.number)],
            **self.facts(f"seed{seeds[-1]}"),
            "code": code_of(read_object(self.folder / "chain.json")["recipes"]),
            "trials": trials, "winner": best["index"], "fresh": fresh,
            **self._equal_steps(best["params"], seeds)}, depth=1)

    def facts(self, run: str) -> dict:
        """Return the provenance of a run: machine, torch version, commit and digest of the data."""
        facts = read_object(self.folder / run / "run.json")
        return {"machine": f"{facts['device']}, {facts['threads']} threads",
                "torch": facts["versions"]["torch"],
                "commit": f"{facts['commit']}{'+' * facts['uncommitted_changes']}",
                "data": data_digest(facts)}

    def _equal_steps(self, params: dict, seeds: Sequence[int]) -> dict:
        """For an annealed rule with two gradient evaluations per step, run the winner for as many
        steps as a rule with one. The ranking does not use these runs."""
        cost = self.arm.gradient_evaluations_per_step
        if self.terms["regime"] == "race" or cost < 2:
            return {}
        horizon = int(cost * self.terms["horizon"])
        longer = replace(self, terms=self.terms | {"cap": horizon, "horizon": horizon})
        return {"equal_steps": [longer._fresh(f"steps{seed}", params, seed) for seed in seeds]}

    def _fresh(self, name: str, params: dict, seed: int) -> dict:
        run = self._run(name, params, seed, self.terms["cap"], fresh=True)
        return fresh_record(seed, run, self.terms)

    def table(self, params: dict) -> dict:
        """Return the `[optimizer]` table of a trial."""
        return self.arm.settings(params, self.terms["cap"])

    def sources(self, path: str) -> set[str]:
        """Return the hashes that a file of this project had when the kept runs were trained; empty
        if the folder holds no chain on these terms."""
        if not _continues(read_object(self.folder / "chain.json"), self.plan):
            return set()
        hashes = (read_object(run).get("sources", {}).get(path)
                  for run in self.folder.glob("*/run.json"))
        return {digest for digest in hashes if digest}

    def _trial(self, trials: Sequence[dict]) -> dict:
        index, most = len(trials), limit(trials, self.terms["cap"])
        params = suggest(self.arm.axes, self.arm.defaults, trials,
                         f"{self.terms['task']}/{self.number}")
        run = self._run(f"trial{index}", params, self.number, most)
        trial = trial_record(index, params, most, run, self.terms)
        print(f"{self.name} trial {index}: {trial['cost'] or trial['status']}", flush=True)
        return trial

    def _run(self, name: str, params: dict, seed: int, most: int, fresh: bool = False) -> dict:
        """Train in subfolder `name`, resume a run there, or read a finished one. Return its
        `status`, the `lines` of metrics.jsonl, and `test`: {"test": metric}, or {} if it was not
        tested. most: the limit in gradient evaluations."""
        folder = self.folder / name
        settings = settings_of(self.terms, self.arm, self.table(params), seed, most, fresh)
        same = folder_identity(folder, self.task).counts_as(identity(settings, self.task))
        if not same or _status(folder) not in ("completed", "diverged"):
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / LOG, "a", encoding="utf-8") as log, \
                    contextlib.redirect_stdout(log), contextlib.redirect_stderr(log), \
                    contextlib.suppress(Diverged):
                train_function(self.task.name)(
                    settings, RunFolder(folder, resume=same, overwrite=not same))
        for checkpoint in CHECKPOINTS:  # also left by a worker that was killed right after a run
            (folder / checkpoint).unlink(missing_ok=True)
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        best = read_object(folder / "summary.json").get("best", {})
        key = f"test_{self.terms['metric'].removeprefix('eval_')}"
        return {"status": _status(folder), "lines": [json.loads(line) for line in lines],
                "test": {"test": best[key]} if key in best else {}}


def _status(folder: Path) -> str | None:
    """Return the final status of the run in a folder, None if it has not ended."""
    return read_object(folder / "summary.json").get("status")


def _continues(kept: dict, plan: dict) -> bool:
    """Whether a chain that was started with the plan `kept` may continue with `plan`: they agree in
    all but the numbers of studies, trials and fresh seeds, and the version of the sampler."""
    def fixed_part(one: dict) -> dict:
        return {**one, "terms": {key: value for key, value in one.get("terms", {}).items()
                                 if key not in (*AMOUNTS, "study_seeds", "sampler")}}

    return fixed_part(kept) == fixed_part(plan)


def _append(path: Path, trials: Sequence[dict]) -> None:
    """Replace trials.jsonl by all `trials`, flushed to the disk before the next trial starts."""
    part = path.with_suffix(".part")
    with open(part, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(trial) + "\n" for trial in trials)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def main(arguments: Sequence[str], kind: type[Chain] = Chain) -> int:
    """Run the chain of a folder. Return the exit status: 0, 2 bad input, 130 interrupted."""
    keep_freed_memory()
    try:
        chain = kind.read(Path(arguments[0]))
        lock = acquire(chain.folder)
        try:
            chain.run()
        finally:
            release(lock)
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except (Interrupted, KeyboardInterrupt):
        return INTERRUPTED
    return COMPLETED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
