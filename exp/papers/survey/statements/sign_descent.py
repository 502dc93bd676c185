"""Two examples on which signSGD does not converge and error feedback does."""

from collections.abc import Iterable

import torch
from torch import nn

from exp.report.judgement import judge_exact
from exp.report.rows import Row, Rows
from exp.theory.statement import Verdict
from optimizer import optimizer_class

SLOPES, CHANCE = (4.0, -1.0), 0.25
DIRECTIONS = ((1.5, -0.5), (-0.5, 1.5))
RATE, STEPS = 0.02, 2000
RULES: dict[str, tuple[str, dict]] = {
    "signSGD": ("signum", {"momentum": 0.0}), "EF-signSGD": ("error_feedback", {}),
    "SGD": ("error_feedback", {"compressor": "none"})}


def measure(seeds: list[int]) -> Iterable[Row]:
    """Yield the first example's mean gradient and mean sign, and the second's losses; nothing is
    random."""
    chances = (CHANCE, 1 - CHANCE)
    mean = sum(p * slope for p, slope in zip(chances, SLOPES, strict=True))
    sign = sum(p * (1 if slope > 0 else -1) for p, slope in zip(chances, SLOPES, strict=True))
    yield Row("first example", 0, mean, optimizer="SGD")
    yield Row("first example", 0, sign, optimizer="signSGD")
    for name in RULES:
        x = descend(name, STEPS)
        yield Row("second example, loss", 0, loss(x), optimizer=name)
        yield Row("second example, x1 + x2", 0, float(x.sum()), optimizer=name)


def loss(x: torch.Tensor) -> float:
    """Return the loss of the second example, the sum of both terms."""
    return float(sum((torch.tensor(p, dtype=x.dtype) @ x) ** 2 for p in DIRECTIONS))


def descend(name: str, steps: int) -> torch.Tensor:
    """Return x after `steps` steps of a rule on the second example."""
    stem, settings = RULES[name]
    x = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = optimizer_class(stem)([x], lr=RATE, weight_decay=0.0, **settings)
    for step in range(steps):
        p = torch.tensor(DIRECTIONS[step % 2], dtype=torch.float64)
        x.grad = 2 * (p @ x.detach()) * p
        optimizer.step()
    return x.detach()


def judge(rows: Rows) -> Verdict:
    """Judge by the mean step and the losses."""
    first = {name: values[0] for name, values
             in rows.where(axis="first example").tree("optimizer").items()}
    last = {name: values[0] for name, values
            in rows.where(axis="second example, loss").tree("optimizer").items()}
    fails = first["SGD"] > 0 > first["signSGD"] and last["signSGD"] >= loss(
        torch.ones(2, dtype=torch.float64)) - 1e-9
    mended = last["EF-signSGD"] < 1e-12
    return Verdict(judge_exact(fails and mended), "loss of the second example: " + ", ".join(
        f"{value:.3g} ({name})" for name, value in last.items()))
