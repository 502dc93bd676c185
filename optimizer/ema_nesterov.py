"""EMA-Nesterov, 2026, arXiv 2605.25395: the gradient is taken ahead, along the average move."""


from typing import Any

import torch
from torch.optim import Optimizer

from .parts import checks
from .parts.base import Closure
from .parts.delta import Delta

__all__ = ["EMANesterov"]

SEARCH_SPACE = {"beta": (0.1, 0.9, "linear"), "gamma": [0.9, 0.97, 0.99]}
COST = {"gradient_evaluations": 1, "state_tensors": 1}
TESTED_AGAINST = "plain numpy"


class EMANesterov(Delta):
    """Before the gradient W <- W + b m, then the step of `base` from there, and with the weights
    W_0 before and W_1 after the step

        m <- gamma m + (1 - gamma) (W_1 - W_0),   b = beta lr / initial lr of the group

    b is 0 in the first `prefill` steps, in which m is averaged already, and from step `rest` on (0:
    never). Between steps the model has the weights themselves, no look-ahead: evaluation needs no
    switch. Clipping and decay inside act ahead. All parameters take part.

    A step needs its closure, which takes the gradient ahead: raises ValueError without.

    Cost: no gradient evaluation of its own; 1 state tensor per parameter.
    """

    stage, accepts_decay = "outer step", True
    moves_before_gradient = True

    def __init__(self, base: Optimizer, beta: float = 0.5, gamma: float = 0.99, prefill: int = 300,
                 rest: int = 0) -> None:
        checks.non_negative(beta=beta)
        checks.fraction(gamma=gamma)
        checks.at_least(0, prefill=prefill, rest=rest)
        super().__init__(base, "all")
        self.beta, self.gamma, self.prefill, self.rest = beta, gamma, prefill, rest
        self.keep_scalars(steps=0)

    @torch.compiler.disable(recursive=False)
    def step(self, closure: Closure | None = None) -> Any:
        """One step of `base` from the weights ahead; what `base` returns."""
        if closure is None and any(float(group["lr"]) for group in self.param_groups):
            raise ValueError("EMANesterov takes the gradient ahead of the weights: step(closure)")
        self.look_ahead()
        return super().step(closure)

    def first_step(self, zero_grad: bool = False) -> bool:
        """Raises ValueError: the gradient at hand is that of the weights themselves."""
        raise ValueError("EMANesterov takes the gradient ahead of the weights: step(closure)")

    @torch.compiler.disable
    @torch.no_grad()
    def look_ahead(self) -> None:
        """Note the weights that have a velocity, and move them along it."""
        step = self.scalars["steps"]
        ahead = step >= self.prefill and (step < self.rest or not self.rest)
        for group in self.param_groups if ahead else ():
            share = self.beta * group["lr"] / (group.get("initial_lr", group["lr"]) or 1.0)
            for p in group["params"]:
                if "velocity" in self.state.get(p, {}):
                    self.before[p] = p.detach().clone()
                    p.add_(self.state[p]["velocity"], alpha=float(share))

    @torch.compiler.disable
    def after_step(self) -> None:
        """Average the moves; a weight without a gradient goes back to where it was."""
        for p, start in self.before.items():
            if p.grad is None:
                p.copy_(start)
                continue
            dtype = torch.promote_types(p.dtype, torch.float32)
            velocity = self.state[p].setdefault("velocity", torch.zeros_like(p, dtype=dtype))
            velocity.lerp_(p.to(dtype) - start.to(dtype), 1 - self.gamma)
        self.scalars["steps"] += 1
