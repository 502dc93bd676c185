"""Which direction raises the loss most: gradient, whitened gradient, ARS2's with |W|, or random?"""

import itertools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from exp.harness.build import Built
from exp.harness.objective import frozen_statistics
from exp.report.evidence import sample
from exp.report.judgement import Judgement, judge_above, judge_all
from exp.report.rows import Row, Rows
from exp.report.statistics import mean
from exp.theory.perturbations import gradients, whitened
from exp.theory.statement import Verdict, tally
from exp.theory.sweeps import average
from exp.theory.training import built, steps
from optimizer.parts.sharpness import perturbation, perturbed

TASKS = {"grokking": (40, 200), "cifar": (10, 30), "wikitext2": (10, 30)}  # AdamW's steps
BATCH = {"grokking": 512, "cifar": 128, "wikitext2": 4}
ADAMW = {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 0.1}
LENGTHS = (0.01, 0.03, 0.1, 0.3)  # of the whole perturbation
DECIDES = 0.1
DIRECTIONS = ("gradient", "whitened", "whitened, |W|", "random")
NORMS = ("global", "tensor")
RANDOM = 2  # directions
GRID = {"task": TASKS}


def directions(run: Built, params: list[Tensor], gradient: list[Tensor],
               generator: torch.Generator) -> dict[str, list[tuple[list[Tensor], str]]]:
    """Map each name to directions, one tensor per parameter, each with the `scale` of
    `perturbation`."""
    white = whitened(run.optimizer, params, gradient)
    draws = [([torch.randn(p.shape, generator=generator) for p in params], "none")
             for _ in range(RANDOM)]
    return {"gradient": [(gradient, "none")], "whitened": [(white, "none")],
            "whitened, |W|": [(white, "abs")], "random": draws}


def rise(before: Tensor, after: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return the rise of the mean loss (nats) from the log probabilities `before` to those `after`
    (predictions, classes), and the mean KL divergence of `after` from `before`. Targets of -100 are
    ignored."""
    counted = targets != -100
    before, after, targets = before[counted], after[counted], targets[counted]
    loss = F.nll_loss(after, targets) - F.nll_loss(before, targets)
    divergence = F.kl_div(after, before, log_target=True, reduction="batchmean")
    return float(loss), float(divergence)


def log_probabilities(run: Built, params: list[Tensor], offsets: list[Tensor]) -> Tensor:
    """Return log probabilities of the last batch at params + offsets, (predictions, classes), in
    float64 because differences are small."""
    with torch.no_grad(), frozen_statistics(run.objective.norms), perturbed(params, offsets):
        return run.model(run.objective.batch[0]).flatten(0, -2).double().log_softmax(-1)


def measure(seeds: list[int], task: str) -> Iterable[Row]:
    """Yield rises and divergences at every point of AdamW's trajectory."""
    for seed in seeds:
        run = built(ADAMW, seed, task, data={"batch_size": BATCH[task]})
        for step in steps(run, TASKS[task][-1]):
            if step in TASKS[task]:
                for (axis, value), settings in measure_at(run, seed):
                    yield Row(axis, seed, value, settings={"step": step, **settings})


def measure_at(run: Built, seed: int) -> Iterator[tuple[tuple[str, float], dict]]:
    """Yield ((axis, value), settings) at one point, on the batch of the last step; for random
    directions the mean of several."""
    batch = run.objective.batch
    params: list[Tensor] = [p for p in run.model.parameters() if p.requires_grad]
    with frozen_statistics(run.objective.norms):
        gradient = gradients(run, batch, params)
    generator = torch.Generator().manual_seed(seed)
    before = log_probabilities(run, params, [torch.zeros_like(p) for p in params])
    for name, drawn in directions(run, params, gradient, generator).items():
        for norm, length in itertools.product(NORMS, LENGTHS):
            rho = length / (len(params) ** 0.5 if norm == "tensor" else 1.0)
            with torch.no_grad():
                offsets = [perturbation(params, d, rho, norm, scale) for d, scale in drawn]
            values = [rise(before, log_probabilities(run, params, o), batch[1].flatten())
                      for o in offsets]
            means = map(average, zip(*values, strict=True))
            for pair in zip(("rise", "divergence"), means, strict=True):
                yield pair, {"norm": norm, "direction": name, "length": length}


def points(rows: Rows) -> dict[str, dict]:
    """Map "task, step n" -> norm -> direction -> length -> axis -> values."""
    trees = rows.tree("task", "step", "norm", "direction", "length", "axis")
    return {f"{task}, step {step}": by_norm for task, by_step in trees.items()
            for step, by_norm in by_step.items()}


def per_divergence(entry: dict[str, list[float]]) -> list[float]:
    """Return the rise over sqrt(2 KL) per seed: g d / sqrt(d F d) for small steps of any length."""
    return [rise / max(2 * kl, 1e-30) ** 0.5
            for rise, kl in zip(entry["rise"], entry["divergence"], strict=True)]


def judge(rows: Rows) -> Verdict:
    """Judge by whether the whitened direction raises the loss more than the gradient, per length
    and per divergence, at each point."""
    pairs = [[by_norm["global"][name][DECIDES] for name in ("whitened", "gradient")]
             for by_norm in points(rows).values()]

    def above(of: Callable[[dict], list[float]]) -> list[Judgement]:
        return [judge_above(sample([a - b for a, b in zip(of(ours), of(theirs), strict=True)]), 0.0)
                for ours, theirs in pairs]

    rises, shares = above(lambda entry: entry["rise"]), above(per_divergence)
    return Verdict(judge_all([*rises, *shares]),
                   "loss increase along the whitened direction above that along the gradient: "
                   f"per length, {tally(rises)}; per divergence, {tally(shares)}")


def tables(rows: Rows) -> dict:
    """Return tables of rises at the deciding length, and of rises over the root of the KL
    divergence."""
    head = ("at", *(f"{name}: {norm}" for norm in NORMS for name in DIRECTIONS))

    def of(values):
        return [head, *((point, *(values(by_norm[norm][name][DECIDES])
                                  for norm in NORMS for name in DIRECTIONS))
                        for point, by_norm in points(rows).items())]

    return {"rises": of(lambda entry: entry["rise"]), "shares": of(per_divergence)}


def figure(rows: Rows) -> dict:
    """Return rise over length: one panel per point."""
    return {"panels": {point: {f"{name}: {norm}": (
                LENGTHS, [mean(entry["rise"]).value for entry in by_norm[norm][name].values()])
                for name in DIRECTIONS for norm in NORMS}
                for point, by_norm in points(rows).items()},
            "most": 2, "xlabel": "length of the perturbation",
            "ylabel": "rise of the loss (nats)", "xscale": "log",
            "symlog": {"y": 1e-4}}
