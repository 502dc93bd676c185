"""The numbers of a board, from its studies alone.

The study is the unit of replication. Its value is the mean over its fresh seeds of the log of the
gradient evaluations to the target, a miss counting as the cap (restricted mean). An arm is compared
with the baseline by the mean of the paired differences of K studies; the variance is the arm's own,
or half way to the mean over arms where that is larger. All intervals are 95 % but for `equal`.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from exp.tune.record import first_passage

EQUAL = 0.05  # equal: the 90 % interval of the ratio lies within 1 -+ 5 %
PRIOR = 0.25  # of the e-value: prior variance of the standardized effect, in studies
TINY = 1e-300  # variance of studies that are all equal
POWER, NEEDED_RATIO = (1.959964, 0.841621), 1.1  # studies needed: 5 %, 80 %, a ratio of 1.1
OPPOSITE = {"cheaper": "at least", "dearer": "at most"}
ANYTIME_FROM = 4  # studies: the anytime interval estimates a variance
ANYTIME = ("values", "censored", "cost", "reached", "spent", "ratio", "bound", "e", "anytime")


def results(terms: dict, arms: dict[str, dict]) -> dict:
    """`results` of a board: every arm, every pair, the pooled deviation, the noise floor."""
    values = {name: study_values(terms, arm["studies"]) for name, arm in arms.items()}
    rows = {name: _row(terms, arms[name]["studies"], *values[name]) for name in arms}
    base = terms["baseline"]
    if base not in arms or terms["studies"] < 2:
        return {"arms": rows, "pairs": [], "pooled_sd": None, "noise": None}
    compared = {name: np.subtract(values[name][0], values[base][0]) for name in arms
                if name != base}
    ranked = [name for name in arms if name != terms["noise_arm"]]
    pooled = float(np.mean([np.var(compared[name], ddof=1) for name in ranked if name != base]
                           or [0.0]))
    for name, d in compared.items():
        censored = [any(values[key][1]) for key in (name, base)]
        rows[name] |= comparison(d, pooled, *censored)
    _judge([rows[name] for name in ranked if name != base], terms["alpha"])
    ordered = pairs({name: values[name][0] for name in ranked}, terms["alpha"])
    for name in ranked:
        rows[name]["rank"] = _rank(name, ordered, len(ranked))
    noise = rows.get(terms["noise_arm"])
    return {"arms": rows, "pairs": ordered, "pooled_sd": math.sqrt(pooled),
            "noise": noise and {**{key: noise[key] for key in ("ratio", "low", "high")},
                                "half_width": math.sqrt(noise["high"] / noise["low"])}}


def interim_results(terms: dict, arms: dict[str, dict], count: int) -> dict:
    """`results` after `count` of the studies that the terms announce: what may be looked at after
    every study. The anytime interval comes with the fourth; no p value, no verdict, no rank."""
    found = results({**terms, "studies": count}, arms)
    keys = [key for key in ANYTIME if key != "anytime" or count >= ANYTIME_FROM]
    return {"arms": {name: {key: row[key] for key in keys if key in row}
                     for name, row in found["arms"].items()}, "pooled_sd": found["pooled_sd"]}


# --- a study, an arm


def study_values(terms: dict, studies: Sequence[dict]) -> tuple[list[float], list[bool]]:
    """The value of each study, and whether one of its seeds missed the target."""
    costs = [[run_cost(terms, run) for run in study["fresh"]] for study in studies]
    values = [float(np.mean([math.log(min(terms["cap"] if cost is None else cost, terms["cap"]))
                             for cost in of_study])) for of_study in costs]
    return values, [None in of_study for of_study in costs]


def run_cost(terms: dict, run: dict) -> int | None:
    """Gradient evaluations of a fresh run to the main target, None for a miss."""
    if run["status"] == "diverged":
        return None
    return first_passage(run["curve"]["evaluations"], run["curve"]["metric"],
                         terms["main_target"], terms["mode"], terms["hold"], terms["cap"])


def _row(terms: dict, studies: Sequence[dict], values: list[float], censored: list[bool]) -> dict:
    costs = [run_cost(terms, run) for study in studies for run in study["fresh"]]
    spent = sum(trial["spent"] for study in studies for trial in study["trials"])
    spent += sum(run["curve"]["evaluations"][-1] for study in studies for run in study["fresh"]
                 if run["curve"]["evaluations"])
    return {"values": values, "censored": censored, "cost": math.exp(np.mean(values)),
            "reached": [len(costs) - costs.count(None), len(costs)], "spent": spent}


# --- an arm beside the baseline


def comparison(d: np.ndarray, pooled: float, ours: bool, theirs: bool) -> dict:
    """Ratio, interval, p and all else that paired differences say.

    ours, theirs: whether a run of the arm, of the baseline, missed the target.
    """
    mean, low, high, p = t_test(d, pooled)
    _, narrow_low, narrow_high, _ = t_test(d, pooled, level=0.90)
    bound = {(True, True): "unknown", (True, False): "at least", (False, True): "at most"}
    own = float(np.var(d, ddof=1))
    return {"ratio": math.exp(mean), "low": _exp(low), "high": _exp(high),
            "bound": bound.get((ours, theirs), ""), "p": p,
            "anytime": anytime_interval(d, pooled), "e": e_value(d),
            "wins_a_study": wins_a_study(mean, own, pooled, len(d)),
            "studies_needed": studies_needed(own, pooled),
            "equal": bool(narrow_low >= math.log(1 - EQUAL) and narrow_high <= math.log(1 + EQUAL))}


def used_variance(own: float, pooled: float) -> float:
    """The variance of an arm's differences that its interval uses; never 0."""
    return max(own, (own + pooled) / 2, TINY)


def t_test(d: np.ndarray, pooled: float, level: float = 0.95
           ) -> tuple[float, float, float, float]:
    """Mean, interval and two-sided p value of K >= 2 differences, 2 (K - 1) degrees of freedom."""
    mean, count = float(np.mean(d)), len(d)
    freedom = 2 * (count - 1)
    error = math.sqrt(used_variance(float(np.var(d, ddof=1)), pooled) / count)
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    return mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, freedom))


def anytime_interval(d: np.ndarray, pooled: float, alpha: float = 0.05) -> list[float]:
    """The interval of the ratio that holds at every number of studies at once (normal mixture)."""
    count, mean = len(d), float(np.mean(d))
    variance = used_variance(float(np.var(d, ddof=1)), pooled)
    half = math.sqrt(variance * 2 * (count + 1) / count**2 * math.log(
        math.sqrt(count + 1) / alpha))
    return [_exp(mean - half), _exp(mean + half)]


def e_value(d: np.ndarray) -> float:
    """The e-value of the t test of no difference, exact at every number of studies."""
    count, total = len(d), float(np.sum(d))
    scaled = (count + PRIOR) * max(float(np.sum(np.square(d))), TINY)
    return math.sqrt(PRIOR / (count + PRIOR)) * (scaled / (scaled - total**2)) ** (count / 2)


def wins_a_study(mean: float, own: float, pooled: float, count: int) -> float:
    """The probability that one more study of both finds the arm cheaper."""
    error = math.sqrt(used_variance(own, pooled) * (1 + 1 / count))
    return float(stats.t.cdf(-mean / error, 2 * (count - 1)))


def studies_needed(own: float, pooled: float) -> int:
    """Studies to tell a ratio of 1.1 from 1 with power 0.8."""
    variance = used_variance(own, pooled)
    return math.ceil(sum(POWER)**2 * variance / math.log(NEEDED_RATIO)**2 + 2)


# --- many arms


def _judge(rows: list[dict], alpha: float) -> None:
    """Holm's p values and the verdicts; none against the side of its bound."""
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        verdict = "cheaper" if row["ratio"] < 1 else "dearer"
        against = row["bound"] in ("unknown", OPPOSITE[verdict])
        row["p_holm"] = p
        if p > alpha or against:
            verdict = "equal" if row["equal"] and not row["bound"] else "undecided"
        row["verdict"] = verdict


def pairs(values: dict[str, list[float]], alpha: float) -> list[dict]:
    """Every pair of arms, with Benjamini-Hochberg's p value and whether it is ordered; the pooled
    variance is the mean over pairs."""
    names = list(values)
    differences = {(a, b): np.subtract(values[a], values[b])
                   for place, a in enumerate(names) for b in names[:place]}
    pooled = float(np.mean([np.var(d, ddof=1) for d in differences.values()] or [0.0]))
    tests = [t_test(d, pooled) for d in differences.values()]
    adjusted = benjamini_hochberg([p for *_, p in tests])
    return [{"a": a, "b": b, "log_ratio": mean, "p": p, "p_bh": q, "ordered": q <= alpha}
            for (a, b), (mean, _, _, p), q in zip(differences, tests, adjusted, strict=True)]


def _rank(name: str, ordered: list[dict], count: int) -> list[int]:
    """[first, last] place that the ordered pairs leave to an arm."""
    signs = [pair["log_ratio"] if pair["a"] == name else -pair["log_ratio"] for pair in ordered
             if pair["ordered"] and name in (pair["a"], pair["b"])]
    return [1 + sum(sign > 0 for sign in signs), count - sum(sign < 0 for sign in signs)]


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values."""
    order = np.argsort(p)
    factors = len(p) - np.arange(len(p))
    adjusted = np.minimum(1.0, np.maximum.accumulate(np.asarray(p, float)[order] * factors))
    return _unsorted(order, adjusted)


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's adjusted p values."""
    order = np.argsort(p)
    factors = len(p) / (np.arange(len(p)) + 1)
    scaled = np.asarray(p, float)[order] * factors
    adjusted = np.minimum(1.0, np.minimum.accumulate(scaled[::-1])[::-1])
    return _unsorted(order, adjusted)


def _unsorted(order: np.ndarray, values: np.ndarray) -> list[float]:
    result = np.empty(len(order))
    result[order] = values
    return result.tolist()


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))
