"""The ladder's results: finished runs into rows, rows into the page, as preregistered.

python -m exp.papers.ladder.analysis [--collect FOLDER]

FOLDER/<rung>/<part>/<arm>/seed<seed>/ are run folders: rung S, M, L, G10 or G30, part "repeats",
"scoring" or "horizons". Without --collect the page is made again from the rows.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from exp.harness.arguments import BAD_INPUT, COMPLETED
from exp.harness.recipes import ROOT
from exp.harness.task import task_named
from exp.harness.toml import read_toml
from exp.jobs.finished import finished_run
from exp.papers.ladder import ranking
from exp.papers.ladder.ranking import Reference
from exp.report.rows import Row, Rows, read_rows, write_rows
from exp.report.statistics import deviation, mean
from exp.report.tables import interval, number, page, table

PLAN = Path(__file__).parent / "preregistration.toml"
OUTPUT = ROOT / "outputs" / "paper" / "ladder"
METRIC = "eval_bits_per_byte"
PARTS = ("repeats", "scoring", "horizons")
RUNGS = ("S", "M", "L", "G10", "G30")
LIMITS = {"deviation": 0.008, "mean": 2.2, "ratio": 4}  # of the go / no-go
RHO, RUNGS_RHO, MARIN_RHO, PAIRS = 0.8, 0.9, 0.7, 0.85  # H1 and H2, H3, H4, H5
FEWEST = 12  # arms


@dataclass(frozen=True)
class Plan:
    """The preregistration: primary arms, their references, marin's losses, SHA-256 of the file."""

    arms: dict[str, dict]
    marin: dict[str, list[float]]
    digest: str

    @cached_property
    def references(self) -> dict[str, Reference]:
        """Arm -> its row of track 3."""
        return {name: Reference(**{key: arm["reference"][key] for key in ("steps", "loss", "n")})
                for name, arm in self.arms.items()}


def preregistration(path: Path = PLAN) -> Plan:
    """Read the plan."""
    content = read_toml(path)
    return Plan(content["arms"], content["marin"], hashlib.sha256(path.read_bytes()).hexdigest())


def collect(folder: Path) -> tuple[Rows, dict]:
    """(rows, provenance) of the finished runs under a folder; diverged ones have no value."""
    rows, provenance = Rows(), {}
    for path in sorted(folder.glob("*/*/*/seed*")):
        rung, part, arm, seed = path.relative_to(folder).parts
        found = finished_run(path, task_named("ladder"))
        if rung not in RUNGS or part not in PARTS or found is None:
            continue
        record = found[0]
        value = record["curve"][METRIC][-1] if record["status"] == "completed" else None
        rows.append(Row(METRIC, int(seed.removeprefix("seed")), value, "ladder", arm, {
            "rung": rung, "part": part, "steps": record["steps"],
            "seconds": record["wall_seconds"], "bytes": record["peak_memory_bytes"],
            "curve": record["curve"][METRIC]}))
        for key in ("device", "threads", "torch", "commit", "data"):
            provenance.setdefault(key, []).append(record[key])
    return rows, {key: sorted(set(map(str, values))) for key, values in provenance.items()}


def scores(rows: Rows, rung: str, part: str) -> dict[str, dict[int, float]]:
    """Arm -> seed -> bits per byte of the runs of a part; diverged ones are left out."""
    found: dict[str, dict[int, float]] = {}
    for row in rows.where(axis=METRIC, rung=rung, part=part):
        if row.value is not None:
            found.setdefault(row.optimizer, {})[row.seed] = row.value
    return found


def go(repeats: dict[str, dict[int, float]]) -> str:
    """The go / no-go of a rung in one sentence."""
    adamw, muon = (list(repeats.get(arm, {}).values()) for arm in ("adamw", "muon"))
    if min(len(adamw), len(muon)) < 2:
        return "Go or no-go: not decided, it needs repeats of AdamW and Muon."
    spread, other = deviation(adamw), deviation(muon)
    ratio = max(spread, other) / min(spread, other)
    holds = (spread <= LIMITS["deviation"] and np.mean(adamw) < LIMITS["mean"]
             and ratio <= LIMITS["ratio"])
    word = "go" if holds else "no go"
    early = "" if min(len(adamw), len(muon)) >= 8 else ", on fewer than the eight seeds declared"
    return (f"{word.capitalize()}{early}: AdamW's s.d. {number(spread)} (at most "
            f"{LIMITS['deviation']}), its mean {number(float(np.mean(adamw)))} (below "
            f"{LIMITS['mean']}), ratio of the two deviations {number(ratio)} (at most "
            f"{LIMITS['ratio']}).")


def agreement(ours: dict[str, dict[int, float]], plan: Plan) -> list[tuple]:
    """Lines of the table of hypotheses H1 (or H2), H4 and H5 at one rung."""
    primary = {arm: list(seeds.values()) for arm, seeds in ours.items() if arm in plan.arms}
    means = {arm: float(np.mean(values)) for arm, values in primary.items()}
    lines: list[tuple] = []
    if len(primary) < FEWEST:
        lines.append(("H1, H2: order of track 3", f"rho >= {RHO}",
                      f"not tested: {len(primary)} of {len(plan.arms)} arms, {FEWEST} needed"))
    else:
        rho = ranking.bootstrap_rho(primary, plan.references)
        p = ranking.permutation_p(list(means.values()), [
            plan.references[arm].normalized for arm in means])
        lines.append(("H1, H2: order of track 3", f"rho >= {RHO}",
                      f"{verdict(rho.value >= RHO)}: {interval(rho)}, p {number(p)}"))
        same, pairs = ranking.agreeing_pairs(means, plan.references)
        lines.append(("H5: pairs that track 3 separates", f">= {PAIRS:.0%}",
                      f"{verdict(same >= PAIRS * pairs)}: {same} of {pairs}"))
    shared = [arm for arm in plan.marin if arm in ours]
    if len(shared) == len(plan.marin):
        rho = ranking.spearman([np.mean(list(ours[arm].values())) for arm in shared],
                               [plan.marin[arm][0] for arm in shared])
        lines.append(("H4: order of marin at 1x", f"rho >= {MARIN_RHO}",
                      f"{verdict(rho >= MARIN_RHO)}: {number(rho)}"))
    else:
        lines.append(("H4: order of marin at 1x", f"rho >= {MARIN_RHO}",
                      f"not tested: {len(shared)} of {len(plan.marin)} arms"))
    return lines


def verdict(holds: bool) -> str:
    """A hypothesis in one word."""
    return "holds" if holds else "fails"


def write_page(rows: Rows, provenance: dict, plan: Plan) -> str:
    """The page of results as Markdown."""
    parts = ["# The ladder: results",
             "Bits per byte of 512 KiB held out, at the last step of one pass; less is better. "
             "Preregistered in `exp/papers/ladder/preregistration.toml`, SHA-256 "
             f"`{plan.digest[:16]}`; made by `python -m exp.papers.ladder.analysis`.",
             *(f"{key.capitalize()}: {', '.join(values)}." for key, values in provenance.items())]
    for rung in (rung for rung in RUNGS if rows.where(rung=rung)):
        repeats, scored = scores(rows, rung, "repeats"), scores(rows, rung, "scoring")
        parts.append(f"## Size {rung}")
        for title, runs in (("Repeats of one setting", repeats), ("Scores", scored)):
            if runs:
                parts += [f"### {title}", table([
                    ("arm", "bits per byte", "s.d.", "seeds", "minutes of wall time a run"),
                    *((arm, four_decimals(list(seeds.values())), deviation(list(seeds.values())),
                       str(len(seeds)), _minutes(rows, rung, arm))
                      for arm, seeds in sorted(runs.items(), key=lambda item: np.mean(
                          list(item[1].values()))))])]
        if repeats:
            parts.append(go(repeats))
        parts += ["### Hypotheses", table([("hypothesis", "declared", "result"),
                                           *agreement(scored, plan)])]
    tested = [rung for rung in ("S", "M") if scores(rows, rung, "scoring")]
    if len(tested) == 2:
        small, middle = (scores(rows, rung, "scoring") for rung in tested)
        both = [arm for arm in small if arm in middle and arm in plan.arms]
        rho = ranking.spearman(*([np.mean(list(runs[arm].values())) for arm in both]
                                 for runs in (small, middle)))
        parts.append(f"H3, S against M on {len(both)} arms: {verdict(rho >= RUNGS_RHO)}, rho "
                     f"{number(rho)} (declared >= {RUNGS_RHO}).")
    median, success = ranking.chance(plan.references, 0.03)
    parts.append(f"Power: were our steps the reference's within 3 %, rho would be {number(median)} "
                 f"in the median and reach {RHO} with probability {number(success)}.")
    return page(*parts)


def four_decimals(values: Sequence[float]) -> str:
    """The mean over seeds and its 95 % interval."""
    estimate = mean(values)
    ends = f" [{estimate.low:.4f}, {estimate.high:.4f}]" if len(values) > 1 else ""
    return f"{estimate.value:.4f}{ends}"


def _minutes(rows: Rows, rung: str, arm: str) -> float:
    return float(np.mean([row["seconds"] for row in rows.where(rung=rung, optimizer=arm)])) / 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0, 2 where there is nothing to show."""
    parser = argparse.ArgumentParser(prog="python -m exp.papers.ladder.analysis")
    parser.add_argument("--collect", type=Path, metavar="FOLDER", help="the run folders")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="rows.json and ladder.md")
    options = parser.parse_args(arguments)
    path = options.output / "rows.json"
    try:
        rows, provenance = collect(options.collect) if options.collect else read_rows(path)
        if not rows:
            raise ValueError(f"{options.collect or path} holds no finished run of the ladder")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    if options.collect:
        write_rows(path, rows, provenance)
    text = write_page(rows, provenance, preregistration())
    (options.output / "ladder.md").write_text(text, encoding="utf-8")
    return COMPLETED


if __name__ == "__main__":
    sys.exit(main())
