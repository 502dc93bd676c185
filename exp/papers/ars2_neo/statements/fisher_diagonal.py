"""Is Adam's second moment the diagonal of the Fisher information?"""

import copy
from collections.abc import Iterable

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from exp.report.evidence import sample
from exp.report.judgement import judge_above, judge_all, judge_below
from exp.report.rows import Row, Rows
from exp.theory.statement import Verdict, tally
from exp.theory.sweeps import average
from exp.theory.training import built, examples, steps

# Task -> steps at which it is looked at, examples, scale.
TASKS = {
    "grokking": ((8, 40, 160, 400), 512, "full"),
    "cifar": ((8, 40, 160), 256, "small"),
    "wikitext2": ((8, 40, 160), 128, "small"),
}
OPTIMIZER = {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 1.0}
AGAINST = ("Fisher", "empirical Fisher")
AXES = ("rank_correlation", "cosine", "error")
RANK, ERROR = 0.9, 0.5
GRID = {"task": TASKS}


def fisher_diagonals(model: nn.Module, inputs: Tensor, labels: Tensor,
                     generator: torch.Generator) -> dict[str, Tensor]:
    """Mean squared gradient of single examples, flat over all parameters: "Fisher" with labels
    drawn from the model, "empirical Fisher" with the true ones.

    inputs (n, ...) whose logits are (1, classes) or (1, sequence, classes); of a sequence the
    gradients of all its tokens are summed (with drawn labels they are uncorrelated). Batch norms
    take the statistics of all inputs: running ones lag far behind early in training.
    """
    model = copy.deepcopy(model)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        with torch.no_grad():
            model.train()(inputs)
    model.eval()
    params = list(model.parameters())
    totals = {name: [torch.zeros_like(p) for p in params] for name in AGAINST}
    for row, own in zip(inputs.split(1), labels.split(1), strict=True):
        logits = model(row).flatten(0, -2)
        sampled = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator).squeeze(1)
        for name, targets in zip(AGAINST, (sampled, own.flatten()), strict=True):
            loss = F.cross_entropy(logits, targets, reduction="sum")
            each = torch.autograd.grad(loss, params, retain_graph=name == AGAINST[0])
            torch._foreach_addcmul_(totals[name], each, each)
    return {name: torch.cat([t.flatten() for t in total]) / len(inputs)
            for name, total in totals.items()}


def agreement(second_moment: Tensor, diagonal: Tensor) -> dict[str, float]:
    """Return rank correlation, cosine, and relative error ||c v - F|| / ||F|| at the best scale
    c."""
    v, f = second_moment.double(), diagonal.double()
    product = v @ f
    cosine = product / (v.norm() * f.norm())
    return {"rank_correlation": float(spearmanr(v.numpy(), f.numpy()).statistic),
            "cosine": float(cosine), "error": float((1 - cosine**2).clamp_min(0).sqrt())}


def measure(seeds: list[int], task: str) -> Iterable[Row]:
    """Train by AdamW and yield its agreement with both diagonals at each point."""
    points, count, scale = TASKS[task]
    for seed in seeds:
        run = built(OPTIMIZER, seed, task, scale)
        inputs, labels = examples(run, count)
        generator = torch.Generator().manual_seed(seed)
        for step in steps(run, points[-1]):
            if step not in points:
                continue
            moment = torch.cat([run.optimizer.state[p]["exp_avg_sq"].flatten()
                                for p in run.model.parameters()])
            for name, diagonal in fisher_diagonals(run.model, inputs, labels, generator).items():
                for axis, value in agreement(moment, diagonal).items():
                    yield Row(axis, seed, value, settings={"step": step, "against": name})


def points(rows: Rows, axis: str) -> list[list[float]]:
    """Map each point to the values per seed, against the true Fisher diagonal."""
    trees = rows.where(against="Fisher", axis=axis).tree("task", "step")
    return [values for by_step in trees.values() for values in by_step.values()]


def judge(rows: Rows) -> Verdict:
    """Judge by rank correlation and error at every point."""
    ranks, errors = points(rows, "rank_correlation"), points(rows, "error")
    parts = [*(judge_above(sample(values), RANK) for values in ranks),
             *(judge_below(sample(values), ERROR) for values in errors)]
    ends = [f"{min(means):.2f} to {max(means):.2f}"
            for means in (list(map(average, values)) for values in (ranks, errors))]
    return Verdict(judge_all(parts), f"rank correlation {ends[0]}, error at the best scale "
                   f"{ends[1]}; {tally(parts)}")


def tables(rows: Rows) -> dict:
    """Return a table of the agreement at every point."""
    trees = rows.tree("task", "step", "against", "axis")
    return {"agreement": [
        ("AdamW at", *(f"{name}: {axis.replace('_', ' ')}" for name in AGAINST for axis in AXES)),
        *((f"{task}, step {step}", *(axes[name][axis] for name in AGAINST for axis in AXES))
          for task, by_step in trees.items() for step, axes in by_step.items())]}
