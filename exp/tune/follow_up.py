"""Follow-ups to a board: sensitivity to the learning rate, transfer of winners to another task, and
the best known settings.

Each question is a set of probes, kept in outputs/paper/follow_up/<task>_<question>.json:
{"question", "terms", "made_with": {name: machine, torch, commit}, "arms": {name: {label: fresh
runs}}}. Pages are made from these files alone.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from exp.harness.errors import ConfigError
from exp.harness.recipes import ROOT
from exp.harness.toml import read_toml
from exp.jobs.launch import Launcher
from exp.jobs.queue import run_jobs
from exp.report.canvas import canvas, styles
from exp.report.jsonfile import require_json, write_json
from exp.report.statistics import mean
from exp.report.tables import Lines, interval, number, page, table
from exp.tune.arms import Arm
from exp.tune.board import board_path, read_board
from exp.tune.cells import ARMS
from exp.tune.estimate import run_cost, run_value, study_values
from exp.tune.inference import Ladder, bound
from exp.tune.page import SIGN
from exp.tune.probe import Probe, probe, value
from exp.tune.terms import rung

RATES = [10 ** (place / 2) for place in range(-3, 4)]  # seven factors, half a decade apart
NEAR = 1.25  # rates of the basin cost at most this many times the best
RATE_SEEDS, MOVE_SEEDS, KNOWN_SEEDS, REPORT_SEEDS = (
    range(9001, 9003), range(9101, 9103), range(8001, 8005), range(8011, 8021))


def ask(question: str, board: dict, outputs: Path, launcher: Launcher, source: dict | None = None
        ) -> Path:
    """Run the probes of a question on a board, write its file and page, and return the file's path.
    question: "sensitivity", "transfer" or "best_known". source: the board whose winners are moved
    to the task of `board`, for "transfer". Raises ConfigError if a probe is not finished."""
    make = {"sensitivity": _rates, "transfer": _moved, "best_known": _known}[question]
    from_board = board if source is None else source
    name = f"{board['terms']['task']}_{question}" + (
        f"_from_{source['terms']['task']}" if source else "")
    excluded = {board["terms"]["noise_arm"], *board["terms"].get("ladder", ())}
    probes = {arm: make(Arm.of(arm, entry), board["terms"], from_board,
                        outputs / "tune" / board["terms"]["task"] / name / arm.replace(":", "_"))
              for arm, entry in from_board["arms"].items() if arm not in excluded}
    probes = {arm: job for arm, job in probes.items() if job.points}
    run_jobs([job for job in probes.values() if job.study() is None], launcher)
    unfinished = [arm for arm, job in probes.items() if job.study() is None]
    if unfinished:
        raise ConfigError(f"not finished: {', '.join(unfinished)}; the same command continues "
                          "from here")
    path = outputs / "paper" / "follow_up" / f"{name}.json"
    write_json(path, {
        "question": question, "terms": board["terms"],
        "made_with": {arm: job.facts(f"point0_seed{job.seeds[0]}") for arm, job in probes.items()},
        "arms": {arm: job.study() for arm, job in probes.items()}}, depth=4)
    write_follow_up(path, outputs)
    return path


def median_winner(terms: dict, entry: dict) -> dict:
    """Return the parameters of the winner of the median study."""
    values, _ = study_values(terms, entry["studies"])
    return _winner(entry["studies"][int(np.argsort(values)[(len(values) - 1) // 2])])


def best_winner(terms: dict, entry: dict) -> dict:
    """Return the parameters of the winner of the best study."""
    values, _ = study_values(terms, entry["studies"])
    return _winner(entry["studies"][int(np.argmin(values))])


def _winner(study: dict) -> dict:
    return study["trials"][study["winner"]]["params"]


def _rates(arm: Arm, terms: dict, board: dict, folder: Path) -> Probe:
    params = median_winner(terms, board["arms"][arm.name])
    points = {f"{params['lr'] * factor:.3g}": {**params, "lr": params["lr"] * factor}
              for factor in RATES}
    return probe(arm, terms, folder, points, RATE_SEEDS)


def _moved(arm: Arm, terms: dict, source: dict, folder: Path) -> Probe:
    """Return the probe of the source's best winner. Nothing is rescaled: rate, decay time in
    horizons and memory mean the same on every task."""
    params = best_winner(source["terms"], source["arms"][arm.name])
    return probe(arm, terms, folder, {"moved": params}, MOVE_SEEDS)


def _known(arm: Arm, terms: dict, board: dict, folder: Path) -> Probe:
    points = {f"winner of study {study['number']}": _winner(study)
              for study in board["arms"][arm.name]["studies"]}
    for recipe in read_toml(ARMS)["known"].get(terms["task"], {}).get(arm.name, []):
        points[recipe] = read_toml(ROOT / "config" / f"{recipe}.toml")["optimizer"]
    return probe(arm, terms, folder, points, KNOWN_SEEDS, REPORT_SEEDS)


# --- pages


def write_follow_up(path: Path, outputs: Path) -> None:
    """Write the page of a question, and the figure of the rates, from its file and the boards."""
    kept = require_json(path)
    board = read_board(board_path(outputs, kept["terms"]["task"])) or {"arms": {}}
    text = {"sensitivity": _sensitivity, "transfer": _transfer, "best_known": _best_known}
    provenance = {f"{facts['machine']}; torch {facts['torch']}; commit {facts['commit']}."
                  for facts in kept["made_with"].values()}
    path.with_suffix(".md").write_text(page(
        text[kept["question"]](kept, board, path).rstrip(), *sorted(provenance)), encoding="utf-8")


def _sensitivity(kept: dict, board: dict, path: Path) -> str:
    terms = kept["terms"]
    margin = math.log(NEAR)
    if terms["regime"] == "anneal":
        ladder = Ladder.of(terms, {name: study_values(rung(terms, name), entry["studies"])[0]
                                   for name, entry in board["arms"].items()})
        margin = math.nan if ladder is None else -ladder.effect(1 / NEAR)
    lines: Lines = [("", "decades within the best", "best rate")]
    curves = {}
    for arm, points in kept["arms"].items():
        rates = tuple(map(float, points))
        values = [value(terms, runs) for runs in points.values()]
        curves[arm] = rates, np.exp(values)
        reached = [math.inf if _misses(terms, runs) else one
                   for one, runs in zip(values, points.values(), strict=True)]
        best = rates[int(np.argmin(reached))] if min(reached) < math.inf else None
        lines.append((arm, basin(rates, reached, margin), best))
    with canvas(path.with_suffix(".png"), panel=(9, 6)) as panels:
        for arm, style in styles(list(curves)).items():
            panels[0, 0].plot(*curves[arm], **style)
        panels[0, 0].set(xlabel="learning rate", xscale="log", yscale="log",
                         ylabel="cost" if terms["regime"] == "race" else terms["metric"]
                         if terms["mode"] == "min" else f"1 - {terms['metric']}")
    return page(f"# Sensitivity to the learning rate: {terms['task']}",
                "How wide a range of learning rates works: seven rates around each arm's median "
                "winner, with two seeds each. *Decades within the best* is the width of the range "
                f"with at most {NEAR:g} times the best cost or, for a final metric, with at most "
                f"the loss that AdamW has from 1/{NEAR:g} of its budget. A rate at which a run "
                "misses the target or diverges is outside. A dash: no rate is inside, or AdamW's "
                "values at other budgets are unknown.", table(lines),
                f"![rates]({path.stem}.png)")


def _misses(terms: dict, runs: list[dict]) -> bool:
    """Whether a run missed the target, or diverged."""
    return any(run["status"] == "diverged" or terms["regime"] == "race"
               and run_cost(terms, run) is None for run in runs)


def basin(rates: Sequence[float], values: Sequence[float], margin: float) -> float:
    """Return the width, in decades, of the range of rates around the best one with values at most
    `margin` above the best. Values are interpolated linearly over log rate; an infinite one lies
    outside, from its finite neighbor on. nan if none is finite, or for a margin of nan."""
    if math.isnan(margin) or not np.isfinite(values).any():
        return math.nan
    logs, excess = np.log10(rates), np.array(values) - min(values) - margin
    best = int(np.argmin(values))

    def reach(order: range) -> float:
        last = best
        for place in order:
            if excess[place] > 0:
                share = excess[last] / (excess[last] - excess[place])
                return logs[last] + share * (logs[place] - logs[last])
            last = place
        return logs[last]

    return float(reach(range(best + 1, len(logs))) - reach(range(best - 1, -1, -1)))


def _transfer(kept: dict, board: dict, path: Path) -> str:
    terms = kept["terms"]
    lines: Lines = [("", "with the winner of the other task", "tuned here", "times")]
    for arm, points in kept["arms"].items():
        moved = value(terms, points["moved"])
        if arm not in board["arms"]:
            lines.append((arm, math.exp(moved), None, None))
            continue
        values, censored = study_values(terms, board["arms"][arm]["studies"])
        tuned = float(np.mean(values))
        sign = SIGN[bound(terms["regime"] == "race" and _misses(terms, points["moved"]),
                          any(censored))]
        lines.append((arm, math.exp(moved), math.exp(tuned),
                      f"{sign}{number(math.exp(moved - tuned))}"))
    return page(f"# Winners of {path.stem.split('_from_')[1]} on {terms['task']}",
                "Do tuned settings transfer? Each arm runs with the learning rate, decay time (in "
                "horizons) and memory of its best study on the other task, on two seeds. *Times* "
                "is the cost with these settings over that with settings tuned here; ≥ or ≤ where "
                "misses, which count as the cap, make it a bound.",
                table(lines))


def _best_known(kept: dict, board: dict, path: Path) -> str:
    terms = kept["terms"]
    race = terms["regime"] == "race"
    cost = "gradient evaluations to the target" if race else "cost"
    lines: Lines = [("", "setting", cost, "reached" if race else "completed")]
    for arm, points in kept["arms"].items():
        (label, runs), = points.items()
        values = [math.exp(run_value(terms, run)) for run in runs]
        good = sum(not _misses(terms, [run]) for run in runs)
        sign = SIGN[bound(race and good < len(runs), False)]
        lines.append((arm, label, sign + interval(mean(values)), f"{good} of {len(runs)} seeds"))
    return page(f"# The best setting known: {terms['task']}",
                "**A setting, not an optimizer**: the best of each arm's winners and of the "
                "hand-set recipes of `exp/tune/arms.toml`. Recipes have no search budget, so this "
                "table ranks no optimizers. A setting is chosen on four seeds and reported on ten "
                "others, with a 95 % interval over these."
                + " A miss counts as the cap; ≥ marks the bound that it makes." * race,
                table(lines))
