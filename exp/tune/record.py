"""Records of trials and fresh runs, and the cost at which a run reaches a target.

A reading is one evaluation of the metric. A run reaches a target with `hold` consecutive readings
at the target or better. Its cost is the number of gradient evaluations at the first of them.
Readings after the limit do not count. The score of an annealed run is the log of its final metric.
Its learning rate is zero from the horizon on, so a reading a few evaluations later counts as one at
the horizon.
"""

import math
from collections.abc import Sequence

KEY = "gradient_evaluations"
LEAST_ERROR = 1e-6  # floor of 1 - accuracy, before its log


def first_passage(evaluations: Sequence[int], values: Sequence[float], target: float, mode: str,
                  hold: int, limit: float) -> int | None:
    """Return the gradient evaluations at the first of `hold` consecutive readings that reach the
    target within `limit`; None for a miss. mode: "max" or "min", the better direction."""
    consecutive: list[int] = []
    for spent, value in zip(evaluations, values, strict=True):
        hit = is_reached(value, target, mode) and spent <= limit
        consecutive = [*consecutive, spent] if hit else []
        if len(consecutive) == hold:
            return consecutive[0]
    return None


def is_reached(value: float, target: float, mode: str) -> bool:
    """Whether a metric is at the target or better."""
    return value >= target if mode == "max" else value <= target


def log_metric(terms: dict, value: float) -> float:
    """Score of an annealed run, lower is better: log of the metric, or of 1 - metric where higher
    is better (an accuracy)."""
    return math.log(value if terms["mode"] == "min" else max(1 - value, LEAST_ERROR))


def readings(lines: Sequence[dict], terms: dict, limit: float) -> tuple[list[int], list[float]]:
    """Return the gradient evaluations and the metric of each reading up to the limit."""
    if terms["regime"] == "anneal":
        lines = [{**line, KEY: min(line[KEY], limit)} for line in lines]
    lines = [line for line in lines if line.get(terms["metric"]) is not None
             and line[KEY] <= limit]
    return [line[KEY] for line in lines], [line[terms["metric"]] for line in lines]


def cost(lines: Sequence[dict], terms: dict, limit: float) -> int | None:
    """Return the gradient evaluations to the main target, None for a miss."""
    return first_passage(*readings(lines, terms, limit), terms["main_target"], terms["mode"],
                         terms["hold"], limit)


def grade(lines: Sequence[dict], terms: dict, limit: float) -> float:
    """Score of a run that misses the main target, higher is better: the number of targets reached,
    minus half the cost of the last one reached as a share of the cap, plus a thousandth of the
    quality in [0, 1] of the last reading up to `grade_at` evaluations."""
    evaluations, values = readings(lines, terms, limit)
    costs = [first_passage(evaluations, values, target, terms["mode"], terms["hold"], limit)
             for target in terms["targets"]]
    reached = [spent for spent in costs if spent is not None]
    early = [value for spent, value in zip(evaluations, values, strict=True)
             if spent <= terms["grade_at"]]
    quality = 0.0 if not early else early[-1] if terms["mode"] == "max" else 1 / (1 + early[-1])
    return len(reached) - 0.5 * (reached[-1] / terms["cap"] if reached else 0.0) + 1e-3 * quality


def trial_record(index: int, params: dict, limit: int, run: dict, terms: dict) -> dict:
    """Return the record of a trial. run: `status` and `lines`, those of its metrics.jsonl."""
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
    """Return the record of a winner's run on a fresh seed: curve up to the cap, seconds, peak
    memory in bytes and, if it was tested, `test`: the metric on the test split."""
    evaluations, values = readings(run["lines"], terms, terms["cap"])
    return {"seed": seed, "status": run["status"], **run["test"],
            "curve": {"evaluations": evaluations, "metric": values},
            "seconds": run["lines"][-1]["seconds"] if run["lines"] else 0.0,
            "peak_memory_bytes": max((line["peak_memory_bytes"] for line in run["lines"]),
                                     default=0)}
