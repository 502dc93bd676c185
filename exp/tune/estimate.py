"""The numbers of a board, computed from its studies alone.

The study is the unit of replication. Its value is a mean over its fresh seeds. In a race, this is
the mean log of the gradient evaluations to the target, where a miss counts as the cap (restricted
mean). In an annealed search, it is the mean log of the metric at the horizon, where a diverged run
counts as an untrained model. An arm is compared with the baseline by the mean paired difference of
K studies. Its variance is the larger of the arm's own and the average of that and the mean over
arms. Intervals are 95 %, except the 90 % interval behind `equal`. On an annealed board, a
difference is also expressed as a budget: the share of the horizon at which the tuned baseline is
equally good, interpolated between its values at half, once and twice the horizon.
"""

import math
from collections.abc import Sequence

import numpy as np

from exp.harness.curves import DECAY_SHARE
from exp.report.judgement import holm
from exp.tune.inference import Ladder, benjamini_hochberg, comparison, exp, t_test
from exp.tune.record import first_passage, is_reached, log_metric

OPPOSITE = {"cheaper": "at least", "dearer": "at most"}
ANYTIME_FROM = 4  # studies; with fewer, the variance in the anytime interval is too uncertain
ANYTIME = ("values", "censored", "cost", "reached", "spent", "equal_steps", "ratio", "bound", "e",
           "anytime")  # keys of an arm's row that may be read after every study


def results(terms: dict, arms: dict[str, dict]) -> dict:
    """Return the `results` of a board: `arms` (a row each), `pairs`, `pooled_sd` (pooled standard
    deviation), `noise` (noise floor), `on_the_way` (costs and ratios to the intermediate targets)
    and, in a race, `steadiness` (how many readings after reaching the target are still at it)."""
    values = {name: study_values(terms, arm["studies"]) for name, arm in arms.items()}
    rows = {name: _row(terms, arms[name]["studies"], *values[name]) for name in arms}
    base, unranked = terms["baseline"], {terms["noise_arm"], *terms.get("ladder", ())}
    ranked = [name for name in arms if name not in unranked]
    if base not in arms or terms["studies"] < 2:
        return {"arms": rows, "pairs": [], "pooled_sd": None, "noise": None}
    compared = {name: np.subtract(values[name][0], values[base][0])
                for name in (*ranked, terms["noise_arm"]) if name in arms and name != base}
    pooled = float(np.mean([float(np.var(compared[name], ddof=1)) for name in ranked
                            if name != base] or [0.0]))
    ladder = Ladder.of(terms, {name: row["values"] for name, row in rows.items()})
    for name, d in compared.items():
        ours, theirs = (any(values[key][1]) for key in (name, base))
        rows[name] |= comparison(d, pooled, ours, theirs, ladder)
    _judge([rows[name] for name in ranked if name != base], terms["alpha"])
    ordered = pairs({name: values[name][0] for name in ranked}, terms["alpha"])
    for name in ranked:
        rows[name]["rank"] = _rank(name, ordered, len(ranked))
    noise = rows.get(terms["noise_arm"])
    return {"arms": rows, "pairs": ordered, "pooled_sd": math.sqrt(pooled),
            "noise": noise and {**{key: noise[key] for key in ("ratio", "low", "high")},
                                "half_width": math.sqrt(noise["high"] / noise["low"])},
            "on_the_way": _on_the_way(terms, {name: arms[name] for name in ranked}),
            "steadiness": {name: _steadiness(terms, arm["studies"]) for name, arm in arms.items()}
            if terms["regime"] == "race" else {}}


def interim_results(terms: dict, arms: dict[str, dict], count: int) -> dict:
    """Return the part of `results` that stays valid when read after every study, with `count` of
    the announced studies. The anytime interval starts with the fourth study. There are no p values,
    verdicts or ranks."""
    full = results({**terms, "studies": count}, arms)
    keys = [key for key in ANYTIME if key != "anytime" or count >= ANYTIME_FROM]
    return {"arms": {name: {key: row[key] for key in keys if key in row}
                     for name, row in full["arms"].items()}, "pooled_sd": full["pooled_sd"]}


# --- a study, an arm


def study_values(terms: dict, studies: Sequence[dict]) -> tuple[list[float], list[bool]]:
    """Return the value of each study, and whether any of its seeds missed the target (race)."""
    values = [float(np.mean([run_value(terms, run) for run in study["fresh"]]))
              for study in studies]
    race = terms["regime"] == "race"
    return values, [race and any(run_cost(terms, run) is None for run in study["fresh"])
                    for study in studies]


def run_value(terms: dict, run: dict) -> float:
    """Return the log of a fresh run's cost in a race, else the log of its metric at the horizon."""
    if terms["regime"] == "race":
        cost = run_cost(terms, run)
        return math.log(terms["cap"] if cost is None else min(cost, terms["cap"]))
    if run["status"] == "diverged":
        return terms["worst"]
    return min(terms["worst"], log_metric(terms, run["curve"]["metric"][-1]))


def run_cost(terms: dict, run: dict, target: float | None = None) -> int | None:
    """Return the gradient evaluations of a fresh run to a target (default: the main one), None for
    a miss. In an annealed run, only readings before the rate decays count."""
    if run["status"] == "diverged":
        return None
    most = terms["cap"] * (1 if terms["regime"] == "race" else 1 - DECAY_SHARE)
    return first_passage(run["curve"]["evaluations"], run["curve"]["metric"],
                         terms["main_target"] if target is None else target, terms["mode"],
                         terms["hold"], most)


def _row(terms: dict, studies: Sequence[dict], values: list[float], censored: list[bool]) -> dict:
    runs = [run for study in studies for run in study["fresh"]]
    race = terms["regime"] == "race"
    arrived = [run_cost(terms, run) is not None if race else run["status"] == "completed"
               for run in runs]
    spent = sum(trial["spent"] for study in studies for trial in study["trials"])
    spent += sum(run["curve"]["evaluations"][-1] for run in runs if run["curve"]["evaluations"])
    longer = [[run_value(terms, run) for run in study["equal_steps"]] for study in studies
              if "equal_steps" in study]
    return {"values": values, "censored": censored, "cost": math.exp(np.mean(values)),
            "reached": [sum(arrived), len(arrived)], "spent": spent,
            **({"equal_steps": math.exp(np.mean(longer))} if longer else {})}


def _on_the_way(terms: dict, arms: dict[str, dict]) -> list[dict]:
    """Return a table per target, except a race's main target: for each arm the geometric mean cost,
    restricted to the cap, [runs that reached it, runs], and the ratio to the baseline with its
    interval."""
    race = terms["regime"] == "race"
    cap = terms["cap"] * (1 if race else 1 - DECAY_SHARE)
    table = []
    for target in terms["targets"][:-1] if race else terms["targets"]:
        costs = {name: [[run_cost(terms, run, target) for run in study["fresh"]]
                        for study in arm["studies"]] for name, arm in arms.items()}
        logs = {name: np.array([np.mean([math.log(cost or cap) for cost in study])
                                for study in of_arm]) for name, of_arm in costs.items()}
        d = {name: of_arm - logs[terms["baseline"]] for name, of_arm in logs.items()}
        others = [name for name in arms if name != terms["baseline"]]
        pooled = float(np.mean([np.var(d[name], ddof=1) for name in others] or [0.0]))
        rows = {}
        for name in arms:
            hits = [cost is not None for study in costs[name] for cost in study]
            rows[name] = {"cost": math.exp(np.mean(logs[name])), "reached": [sum(hits), len(hits)]}
            if name in others:
                mean, low, high, _ = t_test(d[name], pooled)
                rows[name] |= {"ratio": math.exp(mean), "low": exp(low), "high": exp(high)}
        table.append({"target": target, "arms": rows})
    return table


def _steadiness(terms: dict, studies: Sequence[dict]) -> list[int]:
    """Return [readings at the target, readings] over the `linger` readings after each run first
    reaches the target. There are fewer where the cap ends a run."""
    after = []
    for run in (run for study in studies for run in study["fresh"]):
        cost = run_cost(terms, run)
        if cost is not None:
            place = run["curve"]["evaluations"].index(cost) + 1
            after += run["curve"]["metric"][place:place + terms["linger"]]
    return [sum(is_reached(value, terms["main_target"], terms["mode"]) for value in after),
            len(after)]


# --- many arms


def _judge(rows: list[dict], alpha: float) -> None:
    """Set the p value after Holm and the verdict of each row. An arm whose ratio is only a lower
    bound is never called cheaper; one with only an upper bound is never called dearer."""
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        verdict = "cheaper" if row["ratio"] < 1 else "dearer"
        may_be_wrong = row["bound"] in ("unknown", OPPOSITE[verdict])
        row["p_holm"] = p
        if p > alpha or may_be_wrong:
            verdict = "equal" if row["equal"] and not row["bound"] else "undecided"
        row["verdict"] = verdict


def pairs(values: dict[str, list[float]], alpha: float) -> list[dict]:
    """Compare all pairs of arms: log ratio, p value, p value after Benjamini-Hochberg, and
    `ordered`: whether that is significant. The pooled variance is the mean over pairs."""
    names = list(values)
    differences = {(a, b): np.subtract(values[a], values[b])
                   for place, a in enumerate(names) for b in names[:place]}
    pooled = float(np.mean([float(np.var(d, ddof=1)) for d in differences.values()] or [0.0]))
    tests = [t_test(d, pooled) for d in differences.values()]
    adjusted = benjamini_hochberg([p for *_, p in tests])
    return [{"a": a, "b": b, "log_ratio": mean, "p": p, "p_bh": q, "ordered": q <= alpha}
            for (a, b), (mean, _, _, p), q in zip(differences, tests, adjusted, strict=True)]


def _rank(name: str, ordered: list[dict], count: int) -> list[int]:
    """Return [first, last]: the ranks that the ordered pairs allow for an arm."""
    signs = [pair["log_ratio"] if pair["a"] == name else -pair["log_ratio"] for pair in ordered
             if pair["ordered"] and name in (pair["a"], pair["b"])]
    return [1 + sum(sign > 0 for sign in signs), count - sum(sign < 0 for sign in signs)]
