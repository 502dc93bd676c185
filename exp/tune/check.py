"""An independent check of a board: recompute its numbers, and verify the invariants of its terms.

It uses numpy and scipy alone and none of the estimators that made the board, so that it finds
faults in those.
"""

import math
import zlib
from collections.abc import Iterator

import numpy as np
from scipy import stats
from scipy.stats import qmc

TOLERANCE = 1e-9  # relative
AXES = ("lr", "decay_time", "aux_lr", "memory")
KEYS = {"schema", "terms", "arms", "results"}
FIXED = {"hold": 2, "stop_factor": 2.0, "alpha": 0.05, "worth_naming": 1.05}  # of all terms
TABLES = ("on_the_way", "steadiness")  # entries of `results` that terms without "linger" lack
DECAY = 0.2  # share of an annealed run in which the rate decays


def check_board(board: dict) -> list[str]:
    """Return the problems of a board, one line each; empty if all numbers are right. A board in
    progress has the first of its announced studies, equally many of every arm, and no verdicts.

    What its JSON has only once cannot be recomputed: metrics, test, peak memory, seconds, and the
    milliseconds per evaluation of arms that are `paced`.
    """
    try:
        return _problems(board)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        return [f"I1: damaged entry, {type(error).__name__}: {error}"]


def _problems(board: dict) -> list[str]:
    if set(board) != KEYS or board["schema"] not in ("ars-arena/1", "ars-arena/1 in progress"):
        return [f"I1: not a board of schema ars-arena/1: {sorted(board)}"]
    terms = board["terms"]
    problems = [] if board["arms"] else ["I2: no arm"]
    count = terms["studies"]
    if board["schema"] != "ars-arena/1":
        count = min((len(arm["studies"]) for arm in board["arms"].values()), default=0)
        wrong = not 0 < count <= terms["studies"]
        problems += [f"I2: in progress with {count} of {terms['studies']} studies"] * wrong
    for number, seed in terms["study_seeds"].items():
        if seed != zlib.crc32(f"{terms['task']}/{number}".encode()):
            problems.append(f"I4: wrong seed of study {number}")
    problems += [f"I1: {key} is {terms[key]}, not {value}" for key, value in FIXED.items()
                 if terms[key] != value]
    for name, arm in board["arms"].items():
        problems += [f"{name}: {problem}"
                     for problem in _arm(_on_rung(terms, name), name, arm, count)]
    if board["schema"] == "ars-arena/1":  # a challenge has some of the studies, run on any machine
        problems += _machines(terms, board["arms"])
        for name, arm in board["arms"].items():
            problems += _pace(name, arm)
    if not problems:  # otherwise data for the recomputation may be missing
        ours = _results({**terms, "studies": count}, board["arms"])
        if board["schema"] != "ars-arena/1":
            ours = _without_verdicts(ours, count)
        if "linger" not in terms:
            ours = {key: value for key, value in ours.items() if key not in TABLES}
        problems += _differences("results", ours, board["results"])
        noise = board["results"]["arms"].get(terms["noise_arm"], {})
        problems += ["I20: the baseline differs from its noise arm"] * (noise.get("p", 1) <= 1e-3)
    return problems


# --- the search


def _on_rung(terms: dict, name: str) -> dict:
    """Return the terms of an arm. A rung, the baseline tuned for another budget, has another cap.
    """
    share = terms.get("ladder", {}).get(name, 1)
    return {**terms, "cap": int(terms["cap"] * share)}


def _arm(terms: dict, name: str, arm: dict, count: int) -> Iterator[str]:
    first = terms["studies"] + 1 if name == terms["noise_arm"] else 1
    numbers = [study["number"] for study in arm["studies"]]
    if numbers != list(range(first, first + count)):
        yield f"I2: wrong study numbers {numbers}"
    for key in {"lr", "aux_lr"} & arm["axes"].keys():
        low, high, _ = arm["axes"][key]
        if not math.isclose(high / low, 900, rel_tol=1e-6):
            yield f"I3: {key} spans a factor of {high / low:g}, not 900"
    for study in arm["studies"]:
        for problem in (*_trials(terms, arm, study), *_longer(terms, arm, study),
                        *_fresh(terms, study["number"], study["fresh"])):
            yield f"study {study['number']}: {problem}"


def _pace(name: str, arm: dict) -> Iterator[str]:
    """Check the milliseconds per evaluation of an arm that `--pace` has not timed."""
    runs = [run for study in arm["studies"] for run in study["fresh"]]
    spent = sum(max(run["curve"]["evaluations"], default=0) for run in runs)
    pace = 1e3 * sum(run["seconds"] for run in runs) / spent if spent else 0.0
    if not arm.get("paced") and not math.isclose(
            arm["ms_per_evaluation"], pace, rel_tol=TOLERANCE):
        yield f"{name}: I15: ms_per_evaluation is {arm['ms_per_evaluation']}, its runs took {pace}"


def _machines(terms: dict, arms: dict) -> Iterator[str]:
    """Arms are paired by machine: a study ran on one, whatever the arm. AdamW's other budgets, the
    ladder, have no pairs."""
    machines: dict[int, set[str]] = {}
    for name, arm in arms.items():
        for study in arm["studies"] if name not in terms.get("ladder", ()) else ():
            machines.setdefault(study["number"], set()).add(study["machine"])
    for number, names in machines.items():
        if len(names) > 1:
            yield f"I2: study {number} ran on several machines: {'; '.join(sorted(names))}"


def _longer(terms: dict, arm: dict, study: dict) -> Iterator[str]:
    """Check the runs of a two-gradient rule for as many steps as a rule with one gradient has."""
    cap = int(arm["gradient_evaluations_per_step"] * terms["cap"])
    if "equal_steps" in study:
        for problem in _fresh({**terms, "cap": cap}, study["number"], study["equal_steps"]):
            yield f"equal steps: {problem}"


def _trials(terms: dict, arm: dict, study: dict) -> Iterator[str]:
    trials = study["trials"]
    if study["seed"] != terms["study_seeds"].get(str(study["number"])):
        yield "I4: wrong seed"
    if [trial["index"] for trial in trials] != list(range(terms["trials"])):
        yield "I5: trials missing or too many"
        return
    points = qmc.Sobol(len(AXES), scramble=True, rng=study["seed"]).random(4)
    for index, trial in enumerate(trials):
        hits = [before["cost"] for before in trials[:index] if before["cost"] is not None]
        most = max(terms["cap"] / 4, terms["stop_factor"] * min(hits)) if hits else terms["cap"]
        if trial["limit"] != int(min(terms["cap"], most)):
            yield f"I6: wrong limit of trial {index}"
        if trial["spent"] > trial["limit"] or (trial["cost"] or 0) > trial["spent"]:
            yield f"I7: trial {index} exceeds its limit"
        if not index and trial["params"] != arm["defaults"]:
            yield "I9a: trial 0 is not the defaults"
        if 0 < index < terms["start"] and not _is_at(arm, trial["params"], points[index - 1]):
            yield f"I9b: trial {index} is not at the shared point"
    order = sorted(trials, key=lambda trial: (
        (0, trial["cost"]) if trial["cost"] is not None and trial["status"] != "diverged" else
        (1 + (trial["status"] == "diverged"), -trial["grade"])))
    if study["winner"] != order[0]["index"]:
        yield "I8: the winner is not the best trial"


def _is_at(arm: dict, params: dict, point: np.ndarray) -> bool:
    """Whether the common axes of `params` are at a point of the unit cube."""
    for key, share in zip(AXES, point, strict=True):
        axis = arm["axes"].get(key, {"choices": [None]})
        if isinstance(axis, dict):
            place = min(int(share * len(axis["choices"])), len(axis["choices"]) - 1)
            if params.get(key) != axis["choices"][place]:
                return False
        elif abs(math.log(params[key] / axis[0]) / math.log(axis[1] / axis[0]) - share) > 1e-5:
            return False
    return True


def _fresh(terms: dict, number: int, runs: list[dict]) -> Iterator[str]:
    if [run["seed"] for run in runs] != [1000 * number + j
                                         for j in range(1, terms["fresh_seeds"] + 1)]:
        yield "I9: wrong fresh seeds"
    for run in runs:
        spent, values = run["curve"]["evaluations"], run["curve"]["metric"]
        if len(spent) != len(values) or np.any(np.diff([0, *spent]) <= 0):
            yield f"I10: invalid curve of seed {run['seed']}"
        elif np.any(np.diff([0, *spent]) > 2 * terms["evaluate_every"]):
            yield f"I12: readings of seed {run['seed']} are too sparse"
        elif run["status"] not in ("completed", "diverged"):
            yield f"I11: seed {run['seed']} is {run['status']}"
        elif run["status"] == "completed" and (
                spent[-1:] != [terms["cap"]] if terms["regime"] == "anneal" else
                _cost(terms, run) is None
                and max(spent, default=0) + 2 * terms["evaluate_every"] <= terms["cap"]):
            yield f"I11: seed {run['seed']} ended early"


# --- the numbers


def _cost(terms: dict, run: dict, target: float | None = None) -> int | None:
    sign, target = (1 if terms["mode"] == "max" else -1), target or terms["main_target"]
    at = sign * np.asarray(run["curve"]["metric"]) >= sign * target
    spent = run["curve"]["evaluations"]
    for i in range(len(spent) - terms["hold"] + 1):
        window = slice(i, i + terms["hold"])
        if at[window].all() and spent[window][-1] <= _cap(terms) and run["status"] != "diverged":
            return spent[i]
    return None


def _cap(terms: dict) -> float:
    return terms["cap"] * (1 if terms["regime"] == "race" else 1 - DECAY)


def _logs(terms: dict, arms: dict, target: float | None = None) -> tuple[dict, dict]:
    """Return the costs of the fresh runs by arm and study, and the mean log cost by arm and study.
    """
    costs = {name: [[_cost(terms, run, target) for run in study["fresh"]]
                    for study in arm["studies"]] for name, arm in arms.items()}
    return costs, {name: np.array([np.mean([np.log(cost or _cap(terms)) for cost in study])
                                   for study in of_arm]) for name, of_arm in costs.items()}


def _ends(terms: dict, arms: dict) -> tuple[dict, dict]:
    """Return the same for annealed runs: 1 for a completed run or None, and the mean log metric."""
    fine = {name: [[1 if run["status"] == "completed" else None for run in study["fresh"]]
                   for study in arm["studies"]] for name, arm in arms.items()}
    return fine, {name: np.array([np.mean([_end(terms, run) for run in study["fresh"]])
                                  for study in arm["studies"]]) for name, arm in arms.items()}


def _end(terms: dict, run: dict) -> float:
    """Return the log of a run's last metric, or of 1 - metric of an accuracy."""
    if run["status"] == "diverged":
        return terms["worst"]
    end = run["curve"]["metric"][-1]
    return min(terms["worst"], np.log(end if terms["mode"] == "min" else max(1 - end, 1e-6)))


def _results(terms: dict, arms: dict) -> dict:
    race = terms["regime"] == "race"
    costs, logs = _logs(terms, arms) if race else _ends(terms, arms)
    rows = {name: {
        "values": logs[name].tolist(), "cost": float(np.exp(logs[name].mean())),
        "censored": [race and None in study for study in costs[name]],
        "reached": [sum(cost is not None for study in costs[name] for cost in study),
                    sum(map(len, costs[name]))],
        "spent": sum(trial["spent"] for study in arm["studies"] for trial in study["trials"]) + sum(
            max(run["curve"]["evaluations"], default=0) for study in arm["studies"]
            for run in study["fresh"]), **_equal_steps(terms, arm)} for name, arm in arms.items()}
    base, noise = terms["baseline"], terms["noise_arm"]
    if base not in arms or terms["studies"] < 2:
        return {"arms": rows, "pairs": [], "pooled_sd": None, "noise": None}
    ranked = [name for name in arms if name not in (noise, *terms.get("ladder", ()))]
    others = [name for name in ranked if name != base]
    d = {name: logs[name] - logs[base] for name in arms if name in (*others, noise)}
    pooled = np.mean([d[name].var(ddof=1) for name in others]) if others else 0.0
    for name in d:
        rows[name] |= _compared(d[name], pooled, any(rows[name]["censored"]),
                                any(rows[base]["censored"]), _rungs(terms, logs))
    _verdicts([rows[name] for name in others], terms["alpha"])
    pairs = _pairs({name: logs[name] for name in ranked}, terms["alpha"])
    for name in ranked:
        before, after = (sum(
            pair["ordered"] and name in (pair["a"], pair["b"])
            and (pair["log_ratio"] * (1 if pair["a"] == name else -1) * side > 0)
            for pair in pairs) for side in (1, -1))
        rows[name]["rank"] = [1 + before, len(ranked) - after]
    floor = rows.get(noise)
    return {"arms": rows, "pairs": pairs, "pooled_sd": float(np.sqrt(pooled)),
            "noise": floor and {"ratio": floor["ratio"], "low": floor["low"],
                                "high": floor["high"],
                                "half_width": math.sqrt(floor["high"] / floor["low"])},
            "on_the_way": [_way(terms, {name: arms[name] for name in ranked}, target)
                           for target in terms["targets"][:-1 if race else None]],
            "steadiness": {name: _steady(terms, arm) for name, arm in arms.items()}
            if race and "linger" in terms else {}}


def _equal_steps(terms: dict, arm: dict) -> dict:
    """Return the metric of a rule with two gradients per step after twice the evaluations, or {}.
    """
    logs = [_end(terms, run) for study in arm["studies"] for run in study.get("equal_steps", [])]
    return {"equal_steps": float(np.exp(np.mean(logs)))} if logs else {}


def _way(terms: dict, arms: dict, target: float) -> dict:
    """Return the costs and ratios to an intermediate target."""
    costs, logs = _logs(terms, arms, target)
    d = {name: of_arm - logs[terms["baseline"]] for name, of_arm in logs.items()
         if name != terms["baseline"]}
    pooled = np.mean([of_arm.var(ddof=1) for of_arm in d.values()] or [0.0])
    rows = {name: {"cost": float(np.exp(logs[name].mean())), "reached": [
        sum(cost is not None for study in of_arm for cost in study), sum(map(len, of_arm))]}
        for name, of_arm in costs.items()}
    for name, of_arm in d.items():
        low, high = np.exp(_t(of_arm, pooled).interval(0.95))
        rows[name] |= {"ratio": float(np.exp(of_arm.mean())), "low": float(low),
                       "high": float(high)}
    return {"target": target, "arms": rows}


def _steady(terms: dict, arm: dict) -> list[int]:
    """Return [readings at the target, readings] after the runs first reached it."""
    after = [value for study in arm["studies"] for run in study["fresh"]
             for spent, value in list(zip(run["curve"]["evaluations"], run["curve"]["metric"],
                                          strict=True))[_arrival(terms, run):][:terms["linger"]]]
    sign = 1 if terms["mode"] == "max" else -1
    return [sum(sign * value >= sign * terms["main_target"] for value in after), len(after)]


def _arrival(terms: dict, run: dict) -> int:
    """Return the number of readings up to the first one at the target, or of all of them."""
    spent, cost = run["curve"]["evaluations"], _cost(terms, run)
    return len(spent) if cost is None else spent.index(cost) + 1


def _rungs(terms: dict, logs: dict[str, np.ndarray]) -> list[tuple[float, float]]:
    """Return (log(budget / horizon), log metric minus that at the horizon) of the tuned baseline,
    the smallest budget first. Empty unless there is a ladder whose metric falls at each rung."""
    shares = {terms["baseline"]: 1, **terms.get("ladder", {})}
    if len(shares) < 2 or any(name not in logs for name in shares):
        return []
    home = logs[terms["baseline"]].mean()
    rungs = sorted((math.log(share), float(logs[name].mean() - home))
                   for name, share in shares.items())
    return rungs if all(np.diff([metric for _, metric in rungs]) < 0) else []


def _budget(rungs: list[tuple[float, float]], metric: float) -> float:
    """Return the budget at a metric: linear between the rungs, clipped to the outer ones."""
    for (left, above), (right, below) in zip(rungs, rungs[1:], strict=False):
        if above >= metric >= below:
            return math.exp(left + (above - metric) / (above - below) * (right - left))
    return math.exp(rungs[0][0] if metric > rungs[0][1] else rungs[-1][0])


def _without_verdicts(results: dict, count: int) -> dict:
    """Return the results that may be read after any number of studies."""
    final = {"budget", "low", "high", "p", "p_holm", "verdict", "equal", "rank", "wins_a_study",
             "studies_needed", *(["anytime"] if count < 4 else [])}
    return {"pooled_sd": results["pooled_sd"], "arms": {
        name: {key: value for key, value in row.items() if key not in final}
        for name, row in results["arms"].items()}}


def _t(d: np.ndarray, pooled: float) -> stats.rv_continuous:
    """Return the t distribution of the mean difference, centered at its estimate."""
    return stats.t(2 * len(d) - 2, d.mean(), math.sqrt(_variance(d, pooled) / len(d)))


def _variance(d: np.ndarray, pooled: float) -> float:
    return max(d.var(ddof=1), (d.var(ddof=1) + pooled) / 2, 1e-300)


def _compared(d: np.ndarray, pooled: float, ours: bool, theirs: bool,
              rungs: list[tuple[float, float]]) -> dict:
    k, t = len(d), _t(d, pooled)
    s2 = _variance(d, pooled)
    low, high = np.exp(t.interval(0.95))
    narrow = [_budget(rungs, end) if rungs else math.exp(min(end, 700))
              for end in t.interval(0.90)]
    effect = math.log(1.1)
    if rungs:  # times the slope between the horizon and the next larger budget
        effect *= -rungs[[log for log, _ in rungs].index(0) + 1][1] / rungs[-1][0]
    # Where the normal mixture reaches 1 / alpha, in n (= k) studies with sum S of differences:
    # S^2 / (2 s2 (n + 1)) = log(sqrt(n + 1) / alpha).
    reach = math.sqrt(2 * s2 * (k + 1) * math.log(math.sqrt(k + 1) / 0.05)) / k
    ratio = np.square(d.sum()) / ((k + 0.25) * np.square(d).sum()) if d.any() else 0.0
    ends = (d.mean(), *t.interval(0.95)[::-1])
    return {**({"budget": [_budget(rungs, end) for end in ends]} if rungs else {}),
            "ratio": float(np.exp(d.mean())), "low": float(low), "high": float(high),
            "bound": [["", "at most"], ["at least", "unknown"]][ours][theirs],
            "p": float(2 * min(t.cdf(0), t.sf(0))),
            "anytime": [float(np.exp(d.mean() - reach)), float(np.exp(d.mean() + reach))],
            "e": math.sqrt(0.25 / (k + 0.25)) * (1 - ratio) ** (-k / 2),
            "wins_a_study": float(stats.t.cdf(-d.mean() / math.sqrt(s2 * (1 + 1 / k)), 2 * k - 2)),
            "studies_needed": math.ceil(2 + s2 * ((1.959964 + 0.841621) / effect) ** 2),
            "equal": bool(min(narrow) >= 0.95 and max(narrow) <= 1.05)}


def _verdicts(rows: list[dict], alpha: float) -> None:
    """Set the p values after Holm, from the least p value on, and the verdicts."""
    most = 0.0
    for left, row in zip(range(len(rows), 0, -1), sorted(rows, key=lambda row: row["p"]),
                         strict=True):
        most = row["p_holm"] = min(1.0, max(most, left * row["p"]))
        side = "cheaper" if row["ratio"] < 1 else "dearer"
        against = {"cheaper": ("at least", "unknown"), "dearer": ("at most", "unknown")}[side]
        row["verdict"] = "equal" if row["equal"] and not row["bound"] else "undecided"
        if most <= alpha and row["bound"] not in against:
            row["verdict"] = side


def _pairs(logs: dict[str, np.ndarray], alpha: float) -> list[dict]:
    names = list(logs)
    pairs: list[dict] = [{"a": a, "b": b, "log_ratio": float((logs[a] - logs[b]).mean())}
             for i, a in enumerate(names) for b in names[:i]]
    pooled = float(np.mean([(logs[pair["a"]] - logs[pair["b"]]).var(ddof=1)
                            for pair in pairs] or [0.0]))
    for pair in pairs:
        t = _t(logs[pair["a"]] - logs[pair["b"]], pooled)
        pair["p"] = float(2 * min(t.cdf(0), t.sf(0)))
    adjusted = stats.false_discovery_control([pair["p"] for pair in pairs]) if pairs else []
    for pair, q in zip(pairs, adjusted, strict=True):
        pair |= {"p_bh": float(q), "ordered": bool(q <= alpha)}
    return pairs


def _differences(path: str, ours: object, theirs: object) -> list[str]:
    """Return a line for each place where two structures of numbers differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        odd = [f"{path}: {key} is missing or too much"
               for key in sorted(ours.keys() ^ theirs.keys())]
        return odd + [line for key in sorted(ours.keys() & theirs.keys())
                      for line in _differences(f"{path}.{key}", ours[key], theirs[key])]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [line for place, (a, b) in enumerate(zip(ours, theirs, strict=True))
                for line in _differences(f"{path}[{place}]", a, b)]
    if (isinstance(ours, int | float) and isinstance(theirs, int | float)
            and bool not in (type(ours), type(theirs))):
        same = math.isclose(ours, theirs, rel_tol=TOLERANCE)
    else:
        same = ours == theirs
    return [] if same else [f"{path}: the board has {theirs}, its studies give {ours}"]
