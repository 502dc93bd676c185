"""Scores of the published leaderboard: the tuned cost, and that of fresh seeds.

Each arm had several independent studies of equal budget, as in AlgoPerf (arXiv 2306.07179); its
tuned cost is the median over studies of the best trial, a miss being infinite. Costs that are
reported are those of the winners' runs on seeds that the tuning never used.
"""

import math
import statistics

COST = "gradient_evaluations"
EDGE = 0.1  # of a range, on its own scale
HOPELESS = 2.0  # a trial was given up at so many times the cost of its study's best


def winner(record: dict) -> dict | None:
    """The best trial of a study; None if none reached the target."""
    reached = [trial for trial in record["trials"] if trial["value"] is not None]
    return min(reached, key=lambda trial: trial["value"]) if reached else None


def at_edges(record: dict) -> dict[str, float]:
    """The values of a study's winner that lie in the outermost EDGE of their range."""
    best = winner(record)
    return {key: best["settings"][key] for key, (low, high, scale) in record["space"].items()
            if best and not EDGE <= _share(best["settings"][key], low, high, scale) <= 1 - EDGE}


def _share(value: float, low: float, high: float, scale: str) -> float:
    """How far from low to high a value is."""
    if scale == "log":
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def tuned_score(records: list[dict]) -> float:
    """Median over studies of the winner's cost; a study without a winner counts as infinite."""
    return statistics.median(math.inf if best is None else best["gradient_evaluations"]
                             for best in map(winner, records))


def share_near_best(records: list[dict]) -> float:
    """Share of the search space that reaches the target in at most HOPELESS times the study's
    best; trials were never given up sooner than that."""
    near = total = 0
    for record in records:
        best = winner(record)
        total += len(record["trials"])
        if best is not None:
            near += sum(trial["value"] is not None and trial["value"] <= HOPELESS * best["value"]
                        for trial in record["trials"])
    return near / total if total else math.nan


def default_over_best(records: list[dict]) -> tuple[float, bool]:
    """How many times the tuned cost the defaults need, the (lower) median over studies, and
    whether they need more than that: they were given up there. A study whose defaults arrived and
    no trial did counts as 0, less than any; NaN where nothing tells."""
    ratios = []
    for record in records:
        best, defaults = winner(record), record["defaults"]
        if defaults is not None and best is not None:
            missed = defaults["value"] is None
            spent = defaults["limit"] if missed else defaults["value"]
            ratios.append((spent / best["value"], missed))
        elif defaults is not None and defaults["value"] is not None:
            ratios.append((0.0, False))
    return sorted(ratios)[(len(ratios) - 1) // 2] if ratios else (math.nan, False)


def performance_profile(costs: dict[str, dict[str, float]], arm: str, factor: float) -> float:
    """Share of tasks that `arm` does at most `factor` times dearer than the cheapest arm.

    costs: task -> arm -> cost, infinite for a miss.
    """
    solved = 0
    for arms in costs.values():
        cheapest = min(arms.values())
        solved += math.isfinite(arms[arm]) and arms[arm] <= factor * cheapest
    return solved / len(costs)


def representative(records: list[dict]) -> int | None:
    """The number, from 1, of the study with the median winner: the lower middle one of an even
    number; None if no study has a winner."""
    ranked = sorted((best["value"], number) for number, record in enumerate(records, 1)
                    if (best := winner(record)) is not None)
    return ranked[(len(ranked) - 1) // 2][1] if ranked else None


def shown_text(records: list[dict]) -> str:
    """The config that runs the winner of the representative study; "" where there is none."""
    number = representative(records)
    return records[number - 1]["text"] if number is not None else ""


def fresh_costs(task: dict, arm: str, axis: str = COST
                ) -> tuple[list[float | None], list[float]]:
    """What each fresh run of an arm spent to the target, None for a miss, and how long it was
    watched; in "gradient_evaluations", "epochs", or "seconds": evaluations times the pace of the
    run's winner, which was timed beside all others. task: one of a leaderboard.

    A study without a winner counts as a miss of every seed that the others' winners were run on:
    an arm gains nothing by the studies in which it found nothing. A miss is watched as long as the
    longest run of the arm, without any up to the cap: one that diverged early would not have
    arrived later. Both are empty where a winner was not run yet.
    """
    entry, terms = task["arms"][arm], task["terms"]

    def spent(run: dict) -> float:
        if axis == "epochs":
            return run["epochs"]
        evaluations = (run["curve"].get(COST) or [0])[-1]
        return evaluations if axis == COST else (
            evaluations * entry["studies"][run["study"] - 1]["pace"]["ms"] / 1e3)

    ends = [spent(run) for run in entry["fresh"]]
    times = [end if run["reached"] else None for run, end in zip(entry["fresh"], ends, strict=True)]
    winners = [winner(study) for study in entry["studies"]]
    if not ends and any(winners):
        return [], []
    times += [None] * winners.count(None) * terms["fresh_seeds"]
    longest = max(ends, default=terms["cap"])
    watched = [longest if time is None else time for time in times]
    return times, watched
