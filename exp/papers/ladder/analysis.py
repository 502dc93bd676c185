"""The ladder's results: collect finished runs as rows, and write the preregistered page from them.

python -m exp.papers.ladder.analysis [--collect FOLDER]

FOLDER/<rung>/<part>/<arm>/<name>/ are the run folders of exp.tune.path: rung S, M, L, G10 or G30,
part "repeats", "tuning", "scoring" or "horizons". Without --collect the page is rewritten from the
stored rows.
"""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from exp.papers.ladder.options import parse

if __name__ == "__main__":
    parse()  # answers --help and mistyped options before torch is imported

import numpy as np

from exp.harness.arguments import BAD_INPUT, COMPLETED
from exp.harness.folder import read_object
from exp.harness.task import task_named
from exp.harness.toml import read_toml
from exp.jobs.finished import finished_run
from exp.papers.ladder import ranking, speed
from exp.papers.ladder.ranking import Reference
from exp.papers.ladder.speed import Horizons, verdict
from exp.report.rows import Row, Rows, read_rows, write_rows
from exp.report.statistics import Estimate, deviation, mean
from exp.report.tables import Lines, interval, number, page, table

PLAN = Path(__file__).parent / "preregistration.toml"
METRIC = "eval_bits_per_byte"
PARTS = ("repeats", "tuning", "scoring", "horizons")
AUXILIARY = "auxiliary"  # prefix of runs that tune the learning rates of embedding and head
RUNGS = ("S", "M", "L", "G10", "G30")
LIMITS = {"deviation": 0.008, "mean": 2.2, "ratio": 4}  # of the go / no-go
RHO, RUNGS_RHO, MARIN_RHO, PAIRS = 0.8, 0.9, 0.7, 0.85  # H1 and H2, H3, H4, H5
FEWEST = 12  # minimum number of arms for H1, H2 and H5
CLUSTER = {"spectral_descent", "adamw", "adamh", "shampoo"}  # far from the others on track 3


@dataclass(frozen=True)
class Plan:
    """The preregistration: primary and secondary arms, marin's losses, SHA-256 of the file."""

    arms: dict[str, dict]
    secondary: dict[str, dict]
    marin: dict[str, list[float]]
    digest: str

    @cached_property
    def references(self) -> dict[str, Reference]:
        """Primary arms with a row in track 3, and that row."""
        return references(self.arms)


def references(arms: dict[str, dict]) -> dict[str, Reference]:
    """Map each arm that has a row in track 3 to that row."""
    return {name: Reference(**{key: arm["reference"][key] for key in ("steps", "loss", "n")})
            for name, arm in arms.items() if "reference" in arm}


def preregistration(path: Path = PLAN) -> Plan:
    """Read the preregistration from its TOML file."""
    content = read_toml(path)
    return Plan(content["arms"], content["secondary"], content["marin"],
                hashlib.sha256(path.read_bytes()).hexdigest())


def collect(folder: Path) -> tuple[Rows, dict]:
    """Return (rows, provenance) of the finished runs in `folder`; diverged runs have value None."""
    rows = Rows()
    provenance: dict = {}
    for path in sorted(file.parent for file in folder.glob("*/*/*/*/summary.json")):
        rung, part, arm, name = path.relative_to(folder).parts
        finished = finished_run(path, task_named("ladder"))
        if rung not in RUNGS or part not in PARTS or finished is None or name.startswith(AUXILIARY):
            continue
        record, settings = finished[0], read_toml(path / "config.toml")
        value = record["curve"][METRIC][-1] if record["status"] == "completed" else None
        rows.append(Row(METRIC, settings["experiment"]["seed"], value, "ladder", arm, {
            "rung": rung, "part": part, "steps": record["steps"],
            "rate": settings["optimizer"]["lr"],
            "parameters": read_object(path / "run.json")["parameters"],
            "seconds": record["wall_seconds"], "bytes": record["peak_memory_bytes"],
            "curve": record["curve"][METRIC]}))
        for key in ("device", "threads", "torch", "commit", "data"):
            provenance.setdefault(key, []).append(record[key])
    return rows, {key: sorted(set(map(str, values))) for key, values in provenance.items()}


def scores(rows: Rows, rung: str, part: str) -> dict[str, dict[int, float]]:
    """Map arm -> seed -> bits per byte of the runs of a part; diverged runs are left out."""
    by_arm: dict[str, dict[int, float]] = {}
    for row in rows.where(axis=METRIC, rung=rung, part=part):
        if row.value is not None:
            by_arm.setdefault(row.optimizer, {})[row.seed] = row.value
    return by_arm


def go(repeats: dict[str, dict[int, float]]) -> str:
    """Return the go / no-go decision of a rung as one sentence."""
    adamw, muon = (list(repeats.get(arm, {}).values()) for arm in ("adamw", "muon"))
    if min(len(adamw), len(muon)) < 2:
        return ("Go or no-go: not decided; it needs at least two repeats each of AdamW and "
                "Muon.")
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


def noise_floor(repeats: dict[str, dict[int, float]], n: int = 4, difference: float = 0.005) -> str:
    """Return a table, from each arm's repeats, of the band of a difference between two means of n
    seeds, and the number of seeds that detect `difference` (bits per byte)."""
    repeated = {arm: list(seeds.values()) for arm, seeds in repeats.items() if len(seeds) > 1}
    if not repeated:
        return ""
    lines: Lines = [("arm", f"95 % band of a difference of two means of {n} seeds",
                     f"seeds that detect {difference:g} at 90 % power")]
    lines += [(arm, f"{ranking.noise_band(values, n):.4f}",
               number(ranking.seeds_needed(difference, deviation(values))))
              for arm, values in repeated.items()]
    return f"Noise floor, from the repeats:\n\n{table(lines)}"


def agreement(ours: dict[str, dict[int, float]], plan: Plan) -> list[tuple]:
    """Return the table lines of hypotheses H1 (or H2), H4 and H5 at one rung."""
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
        at_1x = ranking.spearman([np.mean(list(ours[arm].values())) for arm in shared],
                                 [plan.marin[arm][0] for arm in shared])
        lines.append(("H4: order of marin at 1x", f"rho >= {MARIN_RHO}",
                      f"{verdict(at_1x >= MARIN_RHO)}: {number(at_1x)}"))
    else:
        lines.append(("H4: order of marin at 1x", f"rho >= {MARIN_RHO}",
                      f"not tested: {len(shared)} of {len(plan.marin)} arms"))
    return lines


def sensitivity(ours: dict[str, dict[int, float]], plan: Plan) -> list[tuple]:
    """Return the table of H1 or H2 under alternative choices, which do not count as tests; empty
    unless H1 or H2 is tested."""
    means = {arm: float(np.mean(list(seeds.values()))) for arm, seeds in ours.items()}
    primary, others = plan.references, references(plan.secondary)
    if len(means.keys() & primary.keys()) < FEWEST:
        return []

    def rho(steps: dict[str, float]) -> str:
        both = [arm for arm in steps if arm in means]
        value = ranking.spearman([means[arm] for arm in both], [steps[arm] for arm in both])
        return f"{number(value)} on {len(both)} arms"

    normalized = {arm: row.normalized for arm, row in primary.items()}
    more = {arm: row.normalized for arm, row in others.items() if arm in means}
    lines = [("without SpectralDescent, AdamW, AdamH and Shampoo",
              rho({arm: steps for arm, steps in normalized.items() if arm not in CLUSTER})),
             ("raw instead of normalized steps",
              rho({arm: float(row.steps) for arm, row in primary.items()}))]
    if more:
        lines.insert(0, (f"with {' and '.join(more)}", rho(normalized | more)))
    return [("order of track 3", "rho"), *lines]


def render(rows: Rows, provenance: dict, plan: Plan, figures: Sequence[str] = ()) -> str:
    """Return the page of results as Markdown; figures: names of image files beside it."""
    parts = ["# The ladder: results",
             "Does the order of optimizers on small byte-level language models agree with their "
             "order in published pretraining? This page has the results, per size of the model. "
             "The hypotheses and their thresholds were preregistered in "
             f"`exp/papers/ladder/preregistration.toml`, SHA-256 `{plan.digest[:16]}`.",
             "How to read: a score is bits per byte on 512 KiB of held-out text, at the last step "
             "of one pass over the training text; less is better. Brackets hold 95 % intervals "
             "over seeds, rho is Spearman's rank correlation, and an arm is an optimizer with its "
             "search space. *MiB* is the peak memory. To make this page again: "
             "`python -m exp.papers.ladder.analysis`.",
             "; ".join(f"{key.capitalize()}: {', '.join(values)}"
                       for key, values in provenance.items()) + "." * bool(provenance)]
    muon = {}
    for rung in (rung for rung in RUNGS if rows.where(rung=rung)):
        repeats, scored = scores(rows, rung, "repeats"), scores(rows, rung, "scoring")
        speeds = speed_ups(rows, rung)
        if "muon" in speeds:
            muon[rung] = speeds["muon"][1]
        parts.append(f"## Size {rung}")
        if repeats:
            parts += ["### Repeats of one setting",
                      _scores(rows.where(rung=rung, part="repeats"), repeats, {})]
        if scored:
            parts += ["### Scores", _scores(rows.where(rung=rung, part="scoring"), scored,
                                            {arm: words for arm, (words, _) in speeds.items()})]
        if repeats:
            parts += [go(repeats), noise_floor(repeats)]
        parts += ["### Hypotheses", table([("hypothesis", "declared", "result"),
                                           *agreement(scored, plan)])]
        if lines := sensitivity(scored, plan):
            parts += ["Sensitivity analysis, which decides no hypothesis:", table(lines)]
    parts += ["## All sizes together", table([("hypothesis", "declared", "result"),
                                          _small_and_middle(rows, plan),
                                          *speed.muons_speed(muon)])]
    median, success = ranking.chance(plan.references, 0.03)
    parts.append("Power of H1: if our steps agreed with the reference's within 3 %, the median of "
                 f"rho would be {number(median)}, and rho would reach {RHO} with probability "
                 f"{number(success)}.")
    return page(*parts, *(f"![{Path(name).stem}]({name})" for name in figures))


def speed_ups(rows: Rows, rung: str) -> dict[str, tuple[str, Estimate]]:
    """Map each arm to its speed-up over AdamW at a rung, as text and as a number; empty without
    AdamW at enough numbers of steps (see `Horizons.of`)."""
    horizons, scored = Horizons.of(rows.where(rung=rung)), scores(rows, rung, "scoring")
    if horizons is None:
        return {}
    speeds = {arm: horizons.speed_up(seeds, scored["adamw"]) for arm, seeds in scored.items()
              if arm != "adamw"}
    return {arm: (horizons.in_words(value), value) for arm, value in speeds.items()}


def _scores(rows: Rows, runs: dict[str, dict[int, float]], speeds: dict[str, str]) -> str:
    """Return the table of one part of a rung, best arm first."""
    lines: Lines = [("arm", "bits per byte", "s.d.", "seeds", "speed-up over AdamW",
                     "minutes per run", "MiB")]
    for arm, seeds in sorted(runs.items(), key=lambda item: np.mean(list(item[1].values()))):
        values, of_arm = list(seeds.values()), rows.where(optimizer=arm)
        lines.append((arm, four_decimals(values), deviation(values), str(len(values)),
                      speeds.get(arm, ""), float(np.mean([row["seconds"] for row in of_arm])) / 60,
                      round(max(row["bytes"] or 0 for row in of_arm) / 2**20)))
    return table(lines)


def _small_and_middle(rows: Rows, plan: Plan) -> tuple[str, ...]:
    """Return the table line of H3."""
    small, middle = (scores(rows, rung, "scoring") for rung in ("S", "M"))
    both = [arm for arm in small if arm in middle and arm in plan.arms]
    name, declared = "H3: S and M agree", f"rho >= {RUNGS_RHO}"
    if len(both) < 2:
        return name, declared, f"not tested: {len(both)} arms at both sizes"
    rho = ranking.spearman(*([np.mean(list(runs[arm].values())) for arm in both]
                             for runs in (small, middle)))
    return name, declared, f"{verdict(rho >= RUNGS_RHO)} on {len(both)} arms: {number(rho)}"


def write_page(folder: Path, rows: Rows, provenance: dict) -> None:
    """Write ladder.md and its figures."""
    sizes: dict[str, dict[int, Estimate]] = {}
    for rung in RUNGS:
        for arm, (_, value) in speed_ups(rows, rung).items():
            (size,) = rows.where(rung=rung, part="scoring").levels("parameters")
            sizes.setdefault(arm, {})[size] = value
    figures = {"speed_ups.png": speed.draw_speeds(folder / "speed_ups.png", sizes),
               "rates.png": speed.draw_rates(folder / "rates.png", rows)}
    text = render(rows, provenance, preregistration(),
                  [name for name, is_drawn in figures.items() if is_drawn])
    (folder / "ladder.md").write_text(text, encoding="utf-8")


def four_decimals(values: Sequence[float]) -> str:
    """Return the mean over seeds and its 95 % interval as text."""
    estimate = mean(values)
    ends = f" [{estimate.low:.4f}, {estimate.high:.4f}]" if len(values) > 1 else ""
    return f"{estimate.value:.4f}{ends}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, or 2 without any finished run."""
    options = parse(arguments)
    path = options.output / "rows.json"
    try:
        rows, provenance = collect(options.collect) if options.collect else read_rows(path)
        if not rows:
            raise ValueError(f"{options.collect or path} has no finished run of the ladder")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    if options.collect:
        write_rows(path, rows, provenance)
    write_page(options.output, rows, provenance)
    return COMPLETED


if __name__ == "__main__":
    sys.exit(main())
