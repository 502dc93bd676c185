"""Lookahead, Zhang et al. 2019, arXiv 1907.08610, Algorithm 1: k steps forward, one step back."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from optimizer.parts import checks
from optimizer.parts.wrapper import Wrapper

__all__ = ["Lookahead"]

SEARCH_SPACE = {"k": [5, 6, 10], "alpha": (0.2, 0.8, "linear")}
COST = {"gradient_evaluations": 1, "state_tensors": 1}


class Lookahead(Wrapper):
    """Every k steps of `base`: slow <- slow + alpha (fast - slow), fast <- slow.

    The slow weights start as the weights at construction (the paper; timm takes those of the
    first synchronization). The state of `base` is kept as it is.

    Cost: no gradient evaluation of its own; 1 state tensor a parameter.
    """

    moves_all = True  # parameters without a gradient too

    def __init__(self, base: Optimizer, k: int = 6, alpha: float = 0.5) -> None:
        checks.at_least(1, k=k)
        checks.non_negative(alpha=alpha)
        if alpha > 1:
            raise ValueError(f"alpha must be <= 1, got {alpha!r}")
        super().__init__(base)
        self.k, self.alpha, self.steps = k, alpha, 0
        self.slow = [p.detach().clone() for p in self.parameters]

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step of `base`, and every k-th time the step back; what `base` returns."""
        loss = self.base.step() if closure is None else self.base.step(closure)
        self.steps += 1
        if self.steps % self.k == 0:
            with torch.no_grad():
                torch._foreach_lerp_(self.slow, self.parameters, self.alpha)
                torch._foreach_copy_(self.parameters, self.slow)
        return loss

    def add_param_group(self, group: dict) -> None:
        """Add a group to `base`; its slow weights start here."""
        super().add_param_group(group)
        if hasattr(self, "slow"):
            self.slow += [p.detach().clone() for p in self.parameters[len(self.slow):]]

    def get_extra_state(self) -> dict:
        """The step count and the slow weights."""
        return {"steps": self.steps, "slow": self.slow}

    def set_extra_state(self, state: dict) -> None:
        """Put back what `get_extra_state` returned."""
        self.steps = state["steps"]
        self.slow = [slow.to(p.device, copy=True)
                     for slow, p in zip(state["slow"], self.parameters, strict=True)]
