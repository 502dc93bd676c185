"""AdamW and SAM-AdamW with each radius schedule, on the small scale of three tasks."""

from exp.harness.task import Metric, task_named
from exp.report.evidence import sample
from exp.report.judgement import POINTS, WORTH_NAMING, Judgement, judge_above
from exp.theory.sweeps import adamw, average, curve

STEPS = {"cifar": 150, "wikitext2": 150, "grokking": 300}
METRIC = {"cifar": "accuracy", "wikitext2": "loss", "grokking": "loss"}
RATES = (1e-3, 3e-3, 1e-2)  # all arms of a task use the one that is best for AdamW
RADII = (0.05, 0.2)
SCHEDULES = ("constant", "lr", "gap")


def final(table: dict, seed: int, task: str, steps: int) -> float:
    """Return a task's held-out metric after `steps` steps with a learning rate that decays to 0."""
    return curve(table, seed, task, count=steps, measure=METRIC[task])[-1]


def judge_better(task: str, ours: list[float], theirs: list[float]) -> Judgement:
    """Judge whether `ours` are better values of the task's metric than `theirs`, paired by seed."""
    sign = 1 if _metric(task).mode == "max" else -1
    scale, least = (100, POINTS) if METRIC[task] == "accuracy" else (1, WORTH_NAMING
                                                                     * average(theirs))
    return judge_above(sample([sign * scale * (a - b) for a, b in zip(ours, theirs, strict=True)]),
                       0.0, least)


def best_key(task: str, values: dict[float, list[float]]) -> float:
    """Return the key with the best mean over seeds."""
    means = {key: average(of_seeds) for key, of_seeds in values.items()}
    return (max if _metric(task).mode == "max" else min)(means, key=lambda key: means[key])


def _metric(task: str) -> Metric:
    return task_named(task).metric(f"eval_{METRIC[task]}")


def baseline(task: str, seeds: list[int]) -> tuple[float, dict[str, list[float]]]:
    """Return AdamW's best learning rate and its values per seed: "as many steps" for SAM's number
    of steps, "as many gradients" for twice as many."""
    by_rate = {lr: [final(adamw(lr), seed, task, STEPS[task]) for seed in seeds] for lr in RATES}
    best = best_key(task, by_rate)
    twice = [final(adamw(best), seed, task, 2 * STEPS[task]) for seed in seeds]
    return best, {"as many steps": by_rate[best], "as many gradients": twice}


def with_radius(task: str, lr: float, schedule: str, seeds: list[int]) -> dict[float, list[float]]:
    """Map each rho to SAM-AdamW's values, one per seed."""
    return {rho: [final({**adamw(lr), "sam": {"rho": rho, "rho_schedule": schedule}}, seed, task,
                        STEPS[task]) for seed in seeds] for rho in RADII}
