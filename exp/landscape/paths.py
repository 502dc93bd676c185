"""Trajectories of an optimizer on a test function, at each learning rate of a grid."""

import inspect
import math
from dataclasses import dataclass

import torch
from torch import nn

from exp.landscape.functions import Function
from optimizer import available_optimizers, is_wrapper, optimizer_class

RATES = tuple(10 ** (exponent / 4) for exponent in range(-16, 3))  # 1e-4 to 3.2, four per decade
COMMON_RATE = 10**-1.5
CLOSE = 1e-4  # a trajectory has arrived when f stays below this fraction of its initial value
WRAPPED = "sgd"


@dataclass(frozen=True)
class Walk:
    """One trajectory: (x, y) and f at the start and after each step. It ends at the first f that is
    not finite."""

    optimizer: str
    lr: float
    points: list[tuple[float, float]]
    values: list[float]
    evaluations: int

    @property
    def final(self) -> float:
        """f at the end; infinity if it is not finite."""
        return self.values[-1] if math.isfinite(self.values[-1]) else math.inf

    @property
    def arrival(self) -> int | None:
        """The first step from which f stays below CLOSE times its initial value, or None."""
        threshold = CLOSE * self.values[0]
        above = [step for step, value in enumerate(self.values) if not value <= threshold]
        return above[-1] + 1 if above[-1] + 1 < len(self.values) else None


def walk(function: Function, name: str, lr: float, steps: int) -> Walk:
    """Take `steps` steps at rate `lr` with default settings, but without weight decay if it can be
    set."""
    weight = nn.Parameter(function.start.clone())
    optimizer = build(name, weight, lr)
    evaluations = 0

    def closure():
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        loss = function.value(weight)
        loss.backward()
        return loss.detach()

    def here() -> tuple[float, float]:
        return tuple(function.coordinates(weight.detach()).tolist())

    points, values = [here()], [float(function.value(weight.detach()))]
    for _ in range(steps):
        optimizer.step(closure)
        value = float(function.value(weight.detach()))
        values.append(value)
        points.append(here())
        if not math.isfinite(value):
            break
    return Walk(name, lr, points, values, evaluations)


def build(name: str, weight: nn.Parameter, lr: float) -> torch.optim.Optimizer:
    """Build the optimizer `name` for one matrix; a wrapper wraps SGD with momentum."""
    cls = optimizer_class(name)
    if is_wrapper(cls):
        return cls(build(WRAPPED, weight, lr))
    accepted = inspect.signature(cls).parameters
    chosen = {"weight_decay": 0.0, "momentum": 0.9 if name == "sgd" else None}
    settings = {key: value for key, value in chosen.items()
                if key in accepted and value is not None}
    return cls([weight], lr=lr, **settings)


def best_walk(function: Function, name: str, steps: int) -> Walk:
    """Return the trajectory, over the rates RATES, with the lowest final value."""
    return min((walk(function, name, lr, steps) for lr in RATES), key=lambda walk: walk.final)


def walkers() -> list[str]:
    """Return every optimizer that accepts a bare matrix: not those that need a model, sparse
    gradients or 8-bit kernels."""
    def takes_a_matrix(name: str) -> bool:
        cls = optimizer_class(name)
        return "model" not in inspect.signature(cls).parameters and name not in (
            "sparse_adam", "adamw_8bit", "muon_8bit")

    ours = [name for name in available_optimizers() if takes_a_matrix(name)
            and optimizer_class(name).__module__.startswith("optimizer.")]
    return [*ours, "adamw", "lbfgs", "sgd"]
