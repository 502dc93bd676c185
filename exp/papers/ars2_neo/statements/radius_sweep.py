"""Does a trust region make RMSuon less sensitive to the learning rate, faster or more stable?"""

import math
from collections.abc import Iterable
from itertools import islice

import torch

from exp.report.evidence import sample
from exp.report.judgement import Judgement, judge_above, judge_all, judge_any, judge_below
from exp.report.rows import Row, Rows
from exp.report.tables import number
from exp.theory.statement import Verdict
from exp.theory.sweeps import average
from exp.theory.training import batches, built

FACTORS = tuple(10 ** (step / 2) for step in range(-2, 3))  # times the rate of RULES
NEAR, WORSE = 1.10, 1.05
LEAST = 0.5  # smallest relevant difference in the number of rates
TR = {"name": "tr_muon", "lr": 1e-3}
GAIN = {"control": "gain", "radius_range": (0.1, 4.0)}  # as in the source's proposal of TR-Muon
LINE = {"control": "line", "radius_range": (0.01, 100.0)}  # wider than the sweep of rates
RULES: dict[str, dict] = {
    "AdamW": {"name": "adamw", "lr": 3e-3}, "Muon": {"name": "muon", "lr": 0.02},
    "K-FAC": {"name": "kfac", "lr": 1e-2},
    "K-FAC, damping 1e-5": {"name": "kfac", "lr": 1e-2, "damping": 1e-5},
    "K-FAC, damping 1e-5, no KL clip": {"name": "kfac", "lr": 1e-2, "damping": 1e-5,
                                        "kl_clip": math.inf},
    "RMSuon": {"name": "rmsuon", "lr": 1e-3},
    "TR-Muon ratio": {**TR, **GAIN, "rule": "ratio"},
    "TR-Muon ratio, accept 0.1": {**TR, **GAIN, "rule": "ratio", "accept": 0.1},
    "TR-Muon secant": {**TR, **GAIN, "rule": "secant"},
    "TR-Muon curvature, line": {**TR, "rule": "curvature", **LINE},
    "TR-Muon slope": {**TR, **GAIN, "rule": "slope", "interval": 1},
    "TR-Muon slope, line": {**TR, "rule": "slope", "interval": 1, **LINE},
}
DEFAULT = "TR-Muon curvature, line"
# Task -> scale, [data] keys.
TASKS: dict[str, tuple[str, dict]] = {
    "grokking": ("small", {}), "cifar": ("small", {"subset": 0.02, "batch_size": 32}),
    "wikitext2": ("mini", {"batch_size": 4})}
GRID = {"task": TASKS, "optimizer": RULES, "factor": FACTORS}
KEYS = ("task", "optimizer", "factor")
EVALUATIONS, EXAMPLES = 100, 128
UNSEEN = 10**6  # an epoch number beyond all runs: new order and augmentation


def measure(seeds: list[int], task: str, optimizer: str, factor: float) -> Iterable[Row]:
    """Return losses at a multiple of the optimizer's rate. K-FAC has no rows for grokking, whose
    matrices are not in modules, so that all would take AdamW."""
    if task == "grokking" and RULES[optimizer]["name"] == "kfac":
        return []
    return final_losses(seeds, task, optimizer, factor)


def final_losses(seeds: list[int], task: str, optimizer: str, factor: float) -> list[Row]:
    """Return the row of each seed, axis "loss"."""
    settings = {**RULES[optimizer], "lr": RULES[optimizer]["lr"] * factor}
    return [Row("loss", seed, final_loss(task, settings, seed)) for seed in seeds]


def final_loss(task: str, settings: dict, seed: int) -> float:
    """Return the mean training loss (nats) over EXAMPLES examples (rows of text) in batches, after
    EVALUATIONS gradient evaluations; infinity if it diverged."""
    scale, data = TASKS[task]
    run = built({**settings, "weight_decay": 0.0}, seed, task, scale, data=data)
    for batch in batches(run):
        if run.objective.gradient_evaluations >= EVALUATIONS:
            break
        loss = run.optimizer.step(run.objective.on(batch))
        if not math.isfinite(float(loss)):
            return math.inf
    count = max(1, EXAMPLES // run.data.train.batch_size)
    with torch.no_grad():
        losses = [float(run.objective.loss_fn(run.model, *batch)[0])
                  for batch in islice(run.data.train.epoch(UNSEEN), count)]
    loss = average(losses)
    return loss if math.isfinite(loss) else math.inf


def means(by_factor: dict[float, list]) -> dict[float, float]:
    """Return the mean loss at each rate; infinity if a seed diverged."""
    return {factor: math.inf if None in losses else average(losses)
            for factor, losses in by_factor.items()}


def near_best(by_factor: dict[float, list]) -> list[int]:
    """Return per seed the number of rates with a loss within NEAR of the lowest."""
    seeds = zip(*([math.inf if loss is None else loss for loss in losses]
                  for losses in by_factor.values()), strict=True)
    return [sum(loss <= NEAR * min(losses) for loss in losses if loss < math.inf)
            for losses in seeds]


def lowest(by_factor: dict[float, list]) -> list[float]:
    """Return the losses per seed at the rate with the lowest mean."""
    losses = means(by_factor)
    best = min(losses, key=lambda factor: losses[factor])
    return [math.inf if loss is None else loss for loss in by_factor[best]]


def tests(by_name: dict, rule: str) -> list[Judgement]:
    """Test whether a rule has more rates near its best than RMSuon, and a lowest loss as low."""
    more = [a - b for a, b in zip(*(near_best(by_name[name]) for name in (rule, "RMSuon")),
                                  strict=True)]
    ratios = [a / b for a, b in zip(*(lowest(by_name[name]) for name in (rule, "RMSuon")),
                                    strict=True)]
    return [judge_above(sample(more), 0.0, LEAST), judge_below(sample(ratios, log=True), WORSE)]


def judge(rows: Rows) -> Verdict:
    """Judge each rule of TR-Muon against RMSuon; the text gives the range of losses over the
    rates."""
    trees, parts = rows.tree(*KEYS), []
    helped = [judge_all([part for by_name in trees.values() for part in tests(by_name, rule)])
              for rule in RULES if rule.startswith("TR-Muon")]
    for task, by_name in trees.items():
        ends = (sorted(means(by_name[name]).values()) for name in ("RMSuon", DEFAULT))
        parts.append(f"{task} " + " against ".join(f"{number(low)} to {number(high)}"
                                                   for low, *_, high in ends))
    return Verdict(judge_any(helped), "range of the loss over two decades of lr, RMSuon against "
                   f"{DEFAULT}: " + "; ".join(parts))


def tables(rows: Rows) -> dict:
    """Return tables per task of losses over the grid, the lowest, the rates near it, and diverged
    runs."""
    def line(name, by_factor):
        losses = means(by_factor)
        finite = {factor: loss for factor, loss in losses.items() if math.isfinite(loss)}
        diverged = sum(loss is None for values in by_factor.values() for loss in values)
        return (f"{name}, lr0 {RULES[name]['lr']:g}", *map(finite.get, losses),
                lowest(by_factor) if finite else None, near_best(by_factor), str(diverged))

    return {task: [(task, *(f"lr0 x {factor:.3g}" for factor in rows.levels("factor")),
                    "lowest, of seeds", f"rates within {NEAR - 1:.0%}", "diverged"),
                   *(line(name, by_factor) for name, by_factor in by_name.items())]
            for task, by_name in rows.tree(*KEYS).items()}


def figure(rows: Rows) -> dict:
    """Return loss over learning rate: one panel per task."""
    return {"panels": {task: {name: (list(by_factor), list(means(by_factor).values()))
                              for name, by_factor in by_name.items()}
                       for task, by_name in rows.tree(*KEYS).items()},
            "xlabel": "learning rate / lr0", "ylabel": "training loss (nats)", "xscale": "log",
            "yscale": "log"}
