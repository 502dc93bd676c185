"""The ladder's results: collect finished runs as rows, and write the preregistered page from them.

python -m exp.papers.ladder.analysis [--collect FOLDER]

FOLDER/<rung>/<part>/<arm>/<name>/ are the run folders of exp.tune.path: rung S, S5000, M, L, G10 or
G30, part "repeats", "tuning", "scoring" or "horizons". Runs of other settings than their rung's are
left out. Without --collect the page is rewritten from the stored rows.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from pathlib import Path

from exp.papers.ladder.options import parse

if __name__ == "__main__":
    parse()  # answers --help and mistyped options before torch is imported

import numpy as np

from exp.harness.arguments import BAD_INPUT, COMPLETED
from exp.harness.recipes import changes
from exp.papers.ladder import ranking, speed
from exp.papers.ladder.ranking import score
from exp.papers.ladder.records import (
    MOST_RATIO,
    RUNGS,
    Plan,
    collect,
    is_noisy,
    not_tuned,
    preregistration,
    ratio_of_spreads,
    references,
    scored,
    scores,
    smallest,
)
from exp.papers.ladder.speed import Horizons, so_far, verdict
from exp.report.rows import Rows, read_rows, write_rows
from exp.report.statistics import Estimate, deviation, mean
from exp.report.tables import Cell, Lines, interval, number, older_code, page, table

NOTES = Path(__file__).parent / "deviations.md"
LIMITS = {"deviation": 0.008, "mean": 2.2, "ratio": MOST_RATIO}  # of the go / no-go
SIZES = ("S", "M", "L")  # at which H6 and H7 are tested
RHO, RUNGS_RHO, MARIN_RHO, PAIRS = 0.8, 0.9, 0.7, 0.85  # H1 and H2, H3, H4, H5
FEWEST = 12  # minimum number of arms for H1, H2, H3 and H5
CLUSTER = {"spectral_descent", "adamw", "adamh", "shampoo"}  # far from the others on track 3


def go(repeats: dict[str, dict[int, float]]) -> str:
    """Return the go / no-go decision of a rung as one sentence."""
    adamw, muon = (list(repeats.get(arm, {}).values()) for arm in ("adamw", "muon"))
    if min(len(adamw), len(muon)) < 2:
        return ("Go or no-go: not decided; it needs at least two repeats each of AdamW and "
                "Muon.")
    if math.inf in adamw + muon:
        return "No go: a repeat diverged."
    spread, ratio = deviation(adamw), ratio_of_spreads(repeats)
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
    repeated = {arm: list(seeds.values()) for arm, seeds in repeats.items()
                if len(seeds) > 1 and math.inf not in seeds.values()}
    if not repeated:
        return ""
    lines: Lines = [("arm", f"95 % band of a difference of two means of {n} seeds",
                     f"seeds that detect {difference:g} at 90 % power")]
    lines += [(arm, f"{ranking.noise_band(values, n):.4f}",
               number(ranking.seeds_needed(difference, deviation(values))))
              for arm, values in repeated.items()]
    return f"Noise floor, from the repeats:\n\n{table(lines)}"


def hypotheses(rows: Rows, plan: Plan) -> list[tuple]:
    """Return the table of hypotheses, each at the sizes and on the arms that were declared for it.
    """
    first = smallest(rows)
    small, middle = (scored(rows, rung, plan) for rung in (first, "M"))
    primary = [arm for arm in plan.arms if arm not in not_tuned(rows, first)]
    needed = max(len(primary), FEWEST)

    def runs(ours: dict[str, dict[int, float]], arms: Sequence[str]) -> dict[str, list[float]]:
        return {arm: list(ours[arm].values()) for arm in arms if arm in ours}

    def order(ours: dict[str, dict[int, float]]) -> str:
        of = runs(ours, primary)
        if len(of) < needed:
            return so_far(len(of), needed, "arms")
        rho = ranking.bootstrap_rho(of, plan.references)
        p = ranking.permutation_p([score(values) for values in of.values()],
                                  [plan.references[arm].normalized for arm in of])
        return f"{verdict(rho.value >= RHO)}: {interval(rho)} on {len(of)} arms, p {number(p)}"

    def same(of: dict[str, list[float]], others: dict[str, list[float]], needed: int, least: float
             ) -> str:
        if len(of) < needed:
            return so_far(len(of), needed, "arms")
        rho = ranking.bootstrap_rho_of_runs(of, others)
        return f"{verdict(rho.value >= least)}: {interval(rho)} on {len(of)} arms"

    both = runs(small, [arm for arm in primary if arm in middle])
    marin = {arm: [losses[0]] for arm, losses in plan.marin.items()}
    of = runs(small, primary)
    alike, pairs = ranking.agreeing_pairs({arm: score(of[arm]) for arm in of}, plan.references)
    muon = {rung: speed_ups(rows, rung)["muon"][1] for rung in (first, "M", "L", "G10", "G30")
            if "muon" in scored(rows, rung, plan) and "muon" in speed_ups(rows, rung)}
    return [
        ("hypothesis", "declared", "result"),
        (f"H1: order of track 3 at {first}", f"rho >= {RHO}", order(small)),
        ("H2: order of track 3 at M", f"rho >= {RHO}", order(middle)),
        (f"H3: {first} and M agree", f"rho >= {RUNGS_RHO}",
         same(both, runs(middle, primary), needed, RUNGS_RHO)),
        (f"H4: order of marin at 1x, at {first}", f"rho >= {MARIN_RHO}",
         same(runs(small, list(marin)), marin, len(marin), MARIN_RHO)),
        (f"H5: pairs that track 3 separates, at {first}", f">= {PAIRS:.0%}",
         so_far(len(of), needed, "arms") if len(of) < needed else
         f"{verdict(alike >= PAIRS * pairs)}: {alike} of {pairs}"),
        *speed.muons_speed(muon, len(SIZES))]


def sensitivity(ours: dict[str, dict[int, float]], plan: Plan) -> list[tuple]:
    """Return the table of H1 or H2 under alternative choices, which do not count as tests; empty
    unless H1 or H2 is tested."""
    means = {arm: score(list(seeds.values())) for arm, seeds in ours.items()}
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
              rho({arm: float(row.steps) for arm, row in primary.items()})),
             ("auxiliary rates tuned again for two arms", "not run"),
             ("1,024 pieces instead of bytes, five arms", "not run")]
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
             "search space. Minutes are the median training time of the arm's runs. To make this "
             "page again: `python -m exp.papers.ladder.analysis`.",
             "; ".join(f"{key.capitalize()}: {', '.join(values)}"
                       for key, values in provenance.items()) + "." * bool(provenance)
             + " A + after a commit: with uncommitted changes."
             * any("+" in commit for commit in provenance.get("commit", ()))]
    for rung in (rung for rung in RUNGS if rows.where(rung=rung)):
        parts += [f"## Size {rung}", *_size(rows.where(rung=rung), rung, plan)]
    parts += ["## Hypotheses", table(hypotheses(rows, plan)), _better(rows, plan)]
    median, success = ranking.chance(plan.references, 0.03)
    parts.append("Power of H1: if our steps agreed with the reference's within 3 %, the median of "
                 f"rho would be {number(median)}, and rho would reach {RHO} with probability "
                 f"{number(success)}.")
    parts += ["## Deviations from the preregistration", NOTES.read_text(encoding="utf-8").strip()]
    return page(*parts, *(f"![{Path(name).stem}]({name})" for name in figures))


def _size(rows: Rows, rung: str, plan: Plan) -> list[str]:
    """Return the parts of the page on one rung, whose rows these are."""
    repeats, ours, speeds = (scores(rows, rung, "repeats"), scores(rows, rung, "scoring"),
                             speed_ups(rows, rung))
    older = dict.fromkeys((row["part"], row.optimizer, changes(row["recipes"] or {}))
                          for row in rows)
    parts = [older_code(f"{part} of {arm}: {changed}" for part, arm, changed in older if changed)]
    if repeats:
        parts += ["### Repeats of one setting", _scores(rows.where(part="repeats"), repeats),
                  go(repeats), noise_floor(repeats)]
    if is_noisy(rows, rung):
        return [*parts, f"No scores: the deviations of the repeats differ by more than a factor "
                        f"{LIMITS['ratio']}, and the preregistration excludes tables of such a "
                        "size."]
    if ours:
        parts += ["### Scores", _scores(rows.where(part="scoring"), ours, plan, {
            arm: words for arm, (words, _) in speeds.items()})]
        if not speeds:
            parts.append("No speed-ups: they need AdamW at four numbers of steps on equal seeds, "
                         "and a falling curve through its scores.")
        parts += [neighbors(rows, rung)]
    if lines := sensitivity(scored(rows, rung, plan), plan):
        parts += ["### Sensitivity analysis, which decides no hypothesis", table(lines)]
    return parts


def separated(rows: Rows, rung: str) -> set[tuple[str, str]]:
    """Return the pairs (better, worse) of arms that are separated at a rung: the paired interval
    excludes 0 and the difference is at least the wider band of the repeats of AdamW and Muon. Empty
    without repeats."""
    repeats, ours = scores(rows, rung, "repeats"), _completed(rows, rung)
    if not {"adamw", "muon"} <= repeats.keys() or is_noisy(rows, rung):
        return set()

    def band(n: int) -> float:
        return max(ranking.noise_band(list(repeats[arm].values()), n) for arm in ("adamw", "muon"))

    return {(a, b) for pair in combinations(ours, 2) for a, b in (pair, pair[::-1])
            if (shared := len(ours[a].keys() & ours[b].keys())) > 1
            and ranking.is_better(ours[a], ours[b], band(shared))}


def neighbors(rows: Rows, rung: str) -> str:
    """Return a table that compares every arm with the next one in the order of a rung. Arms with a
    diverged run are left out."""
    ours, horizons = _completed(rows, rung), Horizons.of(rows.where(rung=rung))
    order = sorted(ours, key=lambda arm: score(list(ours[arm].values())))
    if len(order) < 2:
        return ""
    pairs = separated(rows, rung)
    lines: Lines = [("pair", "difference, bits per byte", "speed-up", "separated",
                     "seeds that detect it at 90 % power")]
    for a, b in pairwise(order):
        difference = ranking.paired_difference(ours[a], ours[b])
        spread = deviation([ours[a][seed] - ours[b][seed] for seed in ours[a] if seed in ours[b]])
        speed_up = (horizons.ratio(ours[a], ours[b], ours["adamw"])
                    if horizons and "adamw" in ours else None)
        needed = ranking.seeds_needed(difference.value, spread / math.sqrt(2)) if (
            difference.n > 1) else None
        lines.append((f"{a}, {b}", difference, speed_up, "yes" if (a, b) in pairs else "no",
                      needed))
    return page("Neighbors in this order. Separated: the paired 95 % interval excludes 0, and the "
                "difference is at least the band of the repeats. Of all "
                f"{len(order) * (len(order) - 1) // 2} pairs {len(pairs)} are separated.",
                table(lines)).strip()


def _better(rows: Rows, plan: Plan) -> str:
    """Return the pairs that are separated at two sizes as a sentence."""
    pairs = separated(rows, smallest(rows)) & separated(rows, "M")
    names = "; ".join(f"{a} than {b}" for a, b in sorted(pairs)) or "no pair so far"
    return (f"Better, that is separated at {smallest(rows)} and M in the same direction: {names}. "
            "No pair was named as a claim beforehand, so there is no Holm correction.")


def _completed(rows: Rows, rung: str) -> dict[str, dict[int, float]]:
    return {arm: seeds for arm, seeds in scores(rows, rung, "scoring").items()
            if math.inf not in seeds.values()}


def speed_ups(rows: Rows, rung: str) -> dict[str, tuple[str, Estimate]]:
    """Map each arm to its speed-up over AdamW at a rung, as text and as a number; empty without
    AdamW at enough numbers of steps (see `Horizons.of`)."""
    horizons, scored = Horizons.of(rows.where(rung=rung)), scores(rows, rung, "scoring")
    if horizons is None or "adamw" not in scored:
        return {}
    speeds = {arm: horizons.speed_up(seeds, scored["adamw"]) for arm, seeds in scored.items()
              if arm != "adamw"}
    return {arm: (horizons.in_words(value), value) for arm, value in speeds.items()}


def _scores(rows: Rows, runs: dict[str, dict[int, float]], plan: Plan | None = None,
            speeds: Mapping[str, str] | None = None) -> str:
    """Return the table of one part of a rung, best arm first. plan: adds the references' numbers
    and their ranks among the arms here."""
    has_memory = any(row["bytes"] for row in rows)
    lines: Lines = [("arm", "bits per byte", "s.d.", "seeds",
                     *(("speed-up over AdamW", "track 3: normalized steps (rank)",
                        "marin at 1x: loss (rank)") if plan else ()),
                     "minutes per run", *(["MiB"] if has_memory else []))]
    steps = {arm: row.normalized for arm, row in plan.references.items()} if plan else {}
    losses = {arm: of[0] for arm, of in plan.marin.items()} if plan else {}
    for arm, seeds in sorted(runs.items(), key=lambda item: score(list(item[1].values()))):
        of_arm = rows.where(optimizer=arm)
        seconds = [row["seconds"] for row in of_arm if row["seconds"] is not None]
        beside: tuple[Cell, ...] = ((speeds or {}).get(arm, ""), _ranked(arm, runs, steps),
                                    _ranked(arm, runs, losses)) if plan else ()
        memory = [round(max(row["bytes"] or 0 for row in of_arm) / 2**20)] if has_memory else []
        lines.append((arm, in_words(list(seeds.values())),
                      deviation([value for value in seeds.values() if math.isfinite(value)]),
                      str(len(seeds)), *beside,
                      float(np.median(seconds)) / 60 if seconds else None, *memory))
    return table(lines)


def _ranked(arm: str, here: Mapping[str, object], reference: Mapping[str, float]) -> str:
    """Return an arm's number in a reference and its rank among the arms here, 1 the least."""
    if arm not in reference:
        return ""
    rank = 1 + sum(reference[other] < reference[arm] for other in here if other in reference)
    return f"{number(reference[arm])} ({rank})"


def write_page(folder: Path, rows: Rows, provenance: dict) -> None:
    """Write ladder.md and its figures."""
    sizes: dict[str, dict[int, Estimate]] = {}
    for rung in RUNGS:
        for arm, (_, value) in speed_ups(rows, rung).items():
            size = rows.where(rung=rung, part="scoring").levels("parameters")[0]
            if math.isfinite(value.value) and not is_noisy(rows, rung):
                sizes.setdefault(arm, {})[size] = value
    figures = {"speed_ups.png": speed.draw_speeds(folder / "speed_ups.png", sizes),
               "rates.png": speed.draw_rates(folder / "rates.png", rows)}
    text = render(rows, provenance, preregistration(),
                  [name for name, is_drawn in figures.items() if is_drawn])
    (folder / "ladder.md").write_text(text, encoding="utf-8")


def in_words(values: Sequence[float]) -> str:
    """Return the mean over seeds and its 95 % interval as text; the median if a run diverged."""
    if math.inf in values:
        return f"{score(values):.4f} (median, {values.count(math.inf)} diverged)"
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
