"""A probe: runs of given settings of one arm, each on fresh seeds, without a search.

python -m exp.tune.probe FOLDER

FOLDER/chain.json holds the points, {label: parameters or a whole [optimizer] table}, and probe.json
the runs of each. With `final_seeds`, the best point runs on these too, and only those are kept.
"""

import json
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from exp.harness.folder import read_object
from exp.report.jsonfile import write_json
from exp.tune import chain
from exp.tune.arms import Arm
from exp.tune.chain import Chain
from exp.tune.estimate import run_value


@dataclass(frozen=True, eq=False)
class Probe(Chain):
    """A probe as a job of the queue. points: label -> parameters."""

    points: dict[str, dict] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    final_seeds: tuple[int, ...] = ()
    module: ClassVar[str] = "exp.tune.probe"

    @property
    def name(self) -> str:
        """Display name: the arm and the question."""
        return f"{self.arm.name} {self.folder.parent.name}"

    @cached_property
    def plan(self) -> dict:
        """Content of chain.json."""
        return super().plan | json.loads(json.dumps(
            {"points": self.points, "seeds": self.seeds, "final_seeds": self.final_seeds}))

    @classmethod
    def read(cls, folder: Path) -> "Probe":
        """Read the probe of a folder. Raises ConfigError if the folder holds none."""
        whole, plan = Chain.read(folder), read_object(folder / "chain.json")
        return cls(whole.arm, whole.number, whole.terms, folder, plan["points"],
                   tuple(plan["seeds"]), tuple(plan["final_seeds"]))

    def study(self) -> dict | None:
        """Return label -> fresh records, those of probe.json; None before all runs are finished."""
        kept, runs = (read_object(self.folder / f"{name}.json") for name in ("chain", "probe"))
        return runs if runs and kept == self.plan else None

    def position(self) -> str:
        """Progress, as text: the name and the number of finished runs."""
        return f"{self.name} {len(list(self.folder.glob('*/summary.json')))} runs"

    def run(self) -> None:
        """Run the missing runs, then write probe.json."""
        runs = {label: self._on(label, self.seeds) for label in self.points}
        if self.final_seeds:
            best = min(runs, key=lambda label: value(self.terms, runs[label]))
            runs = {best: self._on(best, self.final_seeds)}
        write_json(self.folder / "probe.json", runs, depth=2)

    def _on(self, label: str, seeds: tuple[int, ...]) -> list[dict]:
        place = list(self.points).index(label)
        return [self._fresh(f"point{place}_seed{seed}", self.points[label], seed)
                for seed in seeds]

    def table(self, params: dict) -> dict:
        """Return the `[optimizer]` table of a point."""
        return params if "name" in params else super().table(params)


def value(terms: dict, runs: list[dict]) -> float:
    """Return the mean over runs of the log cost, or of the log metric in an annealed search."""
    return float(np.mean([run_value(terms, run) for run in runs]))


def probe(arm: Arm, terms: dict, folder: Path, points: dict[str, dict], seeds: range,
          final_seeds: range = range(0)) -> Probe:
    """Return a probe of an arm."""
    return Probe(arm, 0, terms, folder, points, tuple(seeds), tuple(final_seeds))


if __name__ == "__main__":
    sys.exit(chain.main(sys.argv[1:], Probe))
