"""The ladder's runs: collect them as rows, and select those that the preregistration counts.

Runs of other settings than their rung's are left out.
"""

import hashlib
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path

import numpy as np

from exp.harness.config import load_settings
from exp.harness.folder import read_object
from exp.harness.task import task_named
from exp.harness.toml import read_toml
from exp.jobs.finished import finished_run
from exp.jobs.freshness import essential
from exp.papers.ladder.ranking import Reference
from exp.report.rows import Row, Rows
from exp.report.statistics import deviation
from exp.tune.coordinates import FIRST_RATES, HORIZONS, MORE_RATES

PLAN = Path(__file__).parent / "preregistration.toml"
METRIC = "eval_bits_per_byte"
PARTS = ("repeats", "tuning", "scoring", "horizons")
AUXILIARY = "auxiliary"  # prefix of runs that tune the learning rates of embedding and head
RUNGS = ("S", "S5000", "M", "L", "G10", "G30")
LONGER_S = "S5000"  # takes the place of S in the hypotheses once it has scores
FREE = ("steps", "compile", "hidden_gain", "projection_gain")  # settings that a rung leaves open
FEW = 2  # scoring seeds of a larger size
MOST_RATIO = 4  # of the deviations of AdamW's and Muon's repeats; above, a rung has no tables


@dataclass(frozen=True)
class Plan:
    """The preregistration: primary and secondary arms, marin's losses, seeds by use, SHA-256 of the
    file."""

    arms: dict[str, dict]
    secondary: dict[str, dict]
    marin: dict[str, list[float]]
    seeds: dict[str, list[int]]
    digest: str

    @cached_property
    def references(self) -> dict[str, Reference]:
        """Primary arms with a row in track 3, and that row."""
        return references(self.arms)

    def is_complete(self, arm: str, seeds: Mapping[int, float], rung: str) -> bool:
        """Whether an arm has its declared scoring seeds at a rung: eight for AdamW and Muon, and
        for an arm with a diverged run; two at a larger size."""
        eight = arm in ("adamw", "muon") or math.inf in seeds.values()
        declared = self.seeds["scoring_adamw_muon" if eight else "scoring"]
        return {*declared[:None if rung in ("S", LONGER_S) else FEW]} <= {*seeds}


def references(arms: dict[str, dict]) -> dict[str, Reference]:
    """Map each arm that has a row in track 3 to that row."""
    return {name: Reference(**{key: arm["reference"][key] for key in ("steps", "loss", "n")})
            for name, arm in arms.items() if "reference" in arm}


def preregistration(path: Path = PLAN) -> Plan:
    """Read the preregistration from its TOML file."""
    content = read_toml(path)
    return Plan(content["arms"], content["secondary"], content["marin"],
                content["setting"]["seeds"], hashlib.sha256(path.read_bytes()).hexdigest())


def collect(folder: Path) -> tuple[Rows, dict]:
    """Return (rows, provenance) of the finished runs in `folder`; diverged runs have value None.
    Prints which runs are left out because of their settings."""
    rows = Rows()
    provenance: dict = {}
    for path in sorted(file.parent for file in folder.glob("*/*/*/*/summary.json")):
        rung, part, arm, name = path.relative_to(folder).parts
        finished = finished_run(path, task_named("ladder"))
        if (rung not in RUNGS or part not in PARTS or finished is None or ".other" in name
                or name.startswith(AUXILIARY)):
            continue
        record, settings = finished[0], read_toml(path / "config.toml")
        horizon = horizon_of(finished[1].settings, rung)
        if horizon is None or horizon != 1 and part in ("repeats", "scoring"):
            print(f"left out: {path} has other settings than size {rung}", file=sys.stderr)
            continue
        curve = record["curve"].get(METRIC, [])  # empty if the first epoch diverged
        value = curve[-1] if record["status"] == "completed" else None
        on_gpu = not record["device"].startswith("CPU")  # a CPU's peak is that of all runs so far
        rows.append(Row(METRIC, settings["experiment"]["seed"], value, "ladder", arm, {
            "rung": rung, "part": part, "horizon": horizon, "steps": record["steps"],
            "rate": settings["optimizer"]["lr"],
            "parameters": read_object(path / "run.json").get("parameters"),
            "seconds": record["curve"].get("seconds", [None])[-1],
            "bytes": record["peak_memory_bytes"] if on_gpu else None, "curve": curve,
            "recipes": dict(record["recipes"] or {})}))
        record["commit"] = f"{record['commit']}{'+' * bool(record['uncommitted_changes'])}"
        for key in ("device", "threads", "torch", "commit", "data"):
            provenance.setdefault(key, []).append(record[key])
    provenance = {key: sorted(set(map(str, values))) for key, values in provenance.items()}
    ties = [f"{path.parts[-4]} {path.parent.name} {read_object(path).get('tie')}"
            for path in sorted(folder.glob("*/tuning/*/tie.json"))]
    if ties:
        provenance["ties, bits"] = ties
    return rows, {"collected": [date.today().isoformat()], **provenance}


def horizon_of(settings: dict, rung: str) -> float | None:
    """Return the number of steps of a run relative to its rung's; None if the run has other
    settings than the rung. settings: complete ones."""
    task = task_named("ladder")
    wanted = essential(load_settings(task.config, task.scale(rung), task))

    def fixed(of: dict) -> list[dict]:
        return [{key: value for key, value in of.get(table, {}).items() if key not in FREE}
                for table in ("experiment", "data", "model")]

    if fixed(settings) != fixed(wanted):
        return None
    steps, usual = settings["data"]["steps"], wanted["data"]["steps"]
    return next((factor for factor in (1.0, *HORIZONS) if steps == round(factor * usual)), None)


def scores(rows: Rows, rung: str, part: str) -> dict[str, dict[int, float]]:
    """Map arm -> seed -> bits per byte of the runs of a part; infinite for diverged runs."""
    by_arm: dict[str, dict[int, float]] = {}
    for row in rows.where(axis=METRIC, rung=rung, part=part):
        by_arm.setdefault(row.optimizer, {})[row.seed] = (
            math.inf if row.value is None else row.value)
    return by_arm


def is_noisy(rows: Rows, rung: str) -> bool:
    """Whether the repeats of AdamW and Muon differ too much in spread for a table of the rung."""
    return ratio_of_spreads(scores(rows, rung, "repeats")) > MOST_RATIO


def ratio_of_spreads(repeats: dict[str, dict[int, float]]) -> float:
    """Return the ratio, at least 1, of the deviations of AdamW's and Muon's repeats: nan without
    two of each, infinite if one diverged."""
    runs = [list(repeats.get(arm, {}).values()) for arm in ("adamw", "muon")]
    if not np.isfinite(runs[0] + runs[1]).all():
        return math.inf
    spreads = sorted(map(deviation, runs))
    return spreads[1] / spreads[0] if spreads[0] else math.inf


def scored(rows: Rows, rung: str, plan: Plan) -> dict[str, dict[int, float]]:
    """Return the scores of the arms that have all their declared seeds at a rung; none if its
    repeats are too noisy."""
    return {} if is_noisy(rows, rung) else {
        arm: seeds for arm, seeds in scores(rows, rung, "scoring").items()
        if plan.is_complete(arm, seeds, rung)}


def not_tuned(rows: Rows, rung: str) -> set[str]:
    """Return the arms whose tuning ended with the best rate at an edge of the last extension."""
    arms = set()
    for arm, rates in rows.where(rung=rung, part="tuning", horizon=1).tree(
            "optimizer", "rate").items():
        best = {rate: min((value for value in values if value is not None), default=math.inf)
                for rate, values in rates.items()}
        at_edge = min(best, key=lambda rate: best[rate]) in (min(best), max(best))
        if at_edge and len(best) == sum(map(len, rates.values())) == FIRST_RATES + MORE_RATES:
            arms.add(arm)
    return arms - scores(rows, rung, "scoring").keys()


def smallest(rows: Rows) -> str:
    """Return the rung that counts as S: S with 5,000 steps once it has scores."""
    return LONGER_S if rows.where(rung=LONGER_S, part="scoring") else "S"
