"""EMA-Nesterov, 2026, arXiv 2605.25395: the gradient at weights extrapolated by an average step."""


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
    """Moves the weights W_0 along their average step m before the gradient and the step of `base`:

        W <- W_0 + b m,   W_1 = the step of `base` from W, with the gradient at W
        m <- gamma m + (1 - gamma) (W_1 - W_0),   b = beta lr / initial lr of the group

    b is 0 in the first `prefill` steps, which already update m, and from step `rest` on (0: never).
    Between steps the model holds W_1 without look-ahead, so evaluation needs no switch. Gradient
    clipping and weight decay of `base` act at W. All parameters take part.

    Cost: no additional gradient evaluation; 1 state tensor per parameter.
    Raises ValueError for an invalid argument and for a step without a closure.
    """

    stage, accepts_decay = "outer step", True
    moves_before_gradient, state_keys = True, ("velocity",)

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
        """Take one step of `base` from the extrapolated weights; return what `base` returns."""
        if closure is None and any(float(group["lr"]) for group in self.param_groups):
            raise ValueError("EMANesterov extrapolates the weights first: use step(closure)")
        self.look_ahead()
        return super().step(closure)

    def first_step(self, zero_grad: bool = False) -> bool:
        """Raise ValueError: existing gradients are not those at the extrapolated weights."""
        raise ValueError("EMANesterov extrapolates the weights first: use step(closure)")

    @torch.compiler.disable
    @torch.no_grad()
    def look_ahead(self) -> None:
        """Copy the weights that have an average step m, and move them by b m."""
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
        """Update m; a weight without a gradient returns to its copy."""
        for p, start in self.before.items():
            if p.grad is None:
                p.copy_(start)
                continue
            dtype = torch.promote_types(p.dtype, torch.float32)
            velocity = self.state[p].setdefault("velocity", torch.zeros_like(p, dtype=dtype))
            velocity.lerp_(p.to(dtype) - start.to(dtype), 1 - self.gamma)
        self.scalars["steps"] += 1
