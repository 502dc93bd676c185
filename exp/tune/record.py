"""What one run says: when it reached a target, and the records of trials and fresh runs.

A target is reached with `hold` readings in a row at it or beyond; the cost is the gradient
evaluations at the first of them. No reading beyond the limit counts. An annealed run's score is the
log of its metric at the end: the rate is zero from the horizon on, and a reading that comes a few
evaluations later counts as one at the horizon.
"""

import math
from collections.abc import Sequence

KEY = "gradient_evaluations"
LEAST_ERROR = 1e-6


def first_passage(evaluations: Sequence[int], values: Sequence[float], target: float, mode: str,
                  hold: int, limit: float) -> int | None:
    """Gradient evaluations to the target, None for a miss."""
    row: list[int] = []
    for spent, value in zip(evaluations, values, strict=True):
        row = [*row, spent] if is_reached(value, target, mode) and spent <= limit else []
        if len(row) == hold:
            return row[0]
    return None


def is_reached(value: float, target: float, mode: str) -> bool:
    """Whether a metric is at the target or beyond."""
    return value >= target if mode == "max" else value <= target


def log_metric(terms: dict, value: float) -> float:
    """What annealed runs are compared by, lower is better: log of the metric, or of the error
    where the metric is an accuracy."""
    return math.log(value if terms["mode"] == "min" else max(1 - value, LEAST_ERROR))


def readings(lines: Sequence[dict], terms: dict, limit: float) -> tuple[list[int], list[float]]:
    """Gradient evaluations and metric of every reading of a run up to the limit."""
    if terms["regime"] == "anneal":
        lines = [{**line, KEY: min(line[KEY], limit)} for line in lines]
    kept = [line for line in lines if line.get(terms["metric"]) is not None
            and line[KEY] <= limit]
    return [line[KEY] for line in kept], [line[terms["metric"]] for line in kept]


def cost(lines: Sequence[dict], terms: dict, limit: float) -> int | None:
    """Gradient evaluations to the main target."""
    return first_passage(*readings(lines, terms, limit), terms["main_target"], terms["mode"],
                         terms["hold"], limit)


def grade(lines: Sequence[dict], terms: dict, limit: float) -> float:
    """What misses are ordered by, higher is better: the number of targets reached, less what the
    furthest one cost as a share of the cap (halved), plus a thousandth of the quality, in [0, 1],
    of the last reading up to `grade_at`."""
    evaluations, values = readings(lines, terms, limit)
    costs = [first_passage(evaluations, values, target, terms["mode"], terms["hold"], limit)
             for target in terms["targets"]]
    reached = [spent for spent in costs if spent is not None]
    early = [value for spent, value in zip(evaluations, values, strict=True)
             if spent <= terms["grade_at"]]
    quality = 0.0 if not early else early[-1] if terms["mode"] == "max" else 1 / (1 + early[-1])
    return len(reached) - 0.5 * (reached[-1] / terms["cap"] if reached else 0.0) + 1e-3 * quality


def trial_record(index: int, params: dict, limit: int, run: dict, terms: dict) -> dict:
    """A trial of a chain; run: its `status` and the `lines` of its metrics.jsonl."""
    lines = run["lines"]
    if terms["regime"] == "anneal":
        end = lines[-1][terms["metric"]] if run["status"] == "completed" else None
        return {"index": index, "params": params, "limit": limit, "status": run["status"],
                "cost": None, "spent": min(lines[-1][KEY], limit) if lines else 0,
                "grade": -(terms["worst"] if end is None else log_metric(terms, end))}
    hit = None if run["status"] == "diverged" else cost(lines, terms, limit)
    status = run["status"] if hit is not None or run["status"] == "diverged" else "stopped"
    return {"index": index, "params": params, "limit": limit, "status": status, "cost": hit,
            "grade": grade(lines, terms, limit),
            "spent": min(lines[-1][KEY], limit) if lines else 0}


def fresh_record(seed: int, run: dict, terms: dict) -> dict:
    """A run of a winner on a fresh seed: its curve up to the cap, time and memory; `test`: the
    metric on the test split, if it was tested."""
    evaluations, values = readings(run["lines"], terms, terms["cap"])
    return {"seed": seed, "status": run["status"], **run["test"],
            "curve": {"evaluations": evaluations, "metric": values},
            "seconds": run["lines"][-1]["seconds"] if run["lines"] else 0.0,
            "peak_memory_bytes": max((line["peak_memory_bytes"] for line in run["lines"]),
                                     default=0)}
