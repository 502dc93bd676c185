"""Lookahead, Zhang et al. 2019, arXiv 1907.08610, Algorithm 1: k steps forward, one step back.

Outer momentum: DiLoCo with one worker; SNOO, arXiv 2510.15830.
"""


from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .parts import checks
from .parts.base import Closure
from .parts.wrapper import Wrapper

__all__ = ["Lookahead"]

SEARCH_SPACE = {"k": [5, 6, 10], "alpha": (0.2, 0.8, "linear")}
COST = {"gradient_evaluations": 1, "state_tensors": 1}
TESTED_AGAINST = "by hand, pytorch_optimizer"


class Lookahead(Wrapper):
    """After every k steps of `base`: slow <- slow + alpha (fast - slow), fast <- slow.

    fast are the model's weights. The slow weights start as the weights before the first step (as in
    the paper; timm uses those of the first synchronization). The state of `base` is not changed.

    With outer_momentum mu the update of the slow weights is SGD with Nesterov momentum and rate
    alpha:

        d = slow - fast,   v <- mu v + d,   slow <- slow - alpha (d + mu v)

    `DiLoCo` is the version for several processes.

    Cost: no additional gradient evaluation; 1 state tensor per parameter, 2 with momentum.
    Raises ValueError for an invalid argument.
    """

    stage, state_keys = "outer step", ("slow_weight", "outer_velocity")
    whole_model = True  # copies every weight, with or without a gradient
    counters = {"steps": 0}

    def __init__(self, base: Optimizer, k: int = 6, alpha: float = 0.5,
                 outer_momentum: float = 0.0) -> None:
        checks.at_least(1, k=k)
        checks.non_negative(alpha=alpha)
        checks.fraction(outer_momentum=outer_momentum)
        if alpha > 1:
            raise ValueError(f"alpha must be <= 1, got {alpha!r}")
        super().__init__(base)
        self.k, self.alpha, self.outer_momentum = k, alpha, outer_momentum
        self.start: dict[Tensor, Tensor] = {}  # initial values of weights without a slow weight
        self.keep_scalars(**self.counters)

    def step(self, closure: Closure | None = None) -> Any:
        """Take one step of `base`, update the slow weights every k-th time, and return what `base`
        returns."""
        self._note_starts()
        return super().step(closure)

    def first_step(self, zero_grad: bool = False) -> bool:
        """Copy initial weights and call `first_step` of the sharpness-aware optimizer inside."""
        self._note_starts()
        return super().first_step(zero_grad)

    @torch.compiler.disable  # a compiled graph would lose dictionaries keyed by tensors
    @torch.no_grad()
    def _note_starts(self) -> None:
        for p in self.parameters:
            if p not in self.start and "slow_weight" not in self.state.get(p, {}):
                self.start[p] = p.detach().clone()

    @torch.compiler.disable
    def after_step(self) -> None:
        """Store slow weights of parameters with a gradient; every k-th time update them."""
        for p in [p for p in self.start if p.grad is not None]:
            # After the step of `base`: torch's rules skip initialization if there is any state.
            self.state[p]["slow_weight"] = self.start.pop(p)
            if self.outer_momentum:
                self.state[p]["outer_velocity"] = torch.zeros_like(p)
        self.scalars["steps"] += 1
        if self.scalars["steps"] % self.k == 0:
            fast = [p for p in self.parameters if "slow_weight" in self.state.get(p, {})]
            slow = [self.state[p]["slow_weight"] for p in fast]
            if fast:
                self._step_back(slow, fast)
                torch._foreach_copy_(fast, slow)

    def _step_back(self, slow: list[Tensor], fast: list[Tensor]) -> None:
        if not self.outer_momentum:
            torch._foreach_lerp_(slow, fast, self.alpha)
            return
        velocity = [self.state[p]["outer_velocity"] for p in fast]
        step = torch._foreach_sub(slow, fast)
        torch._foreach_mul_(velocity, self.outer_momentum)
        torch._foreach_add_(velocity, step)
        torch._foreach_add_(step, velocity, alpha=self.outer_momentum)
        torch._foreach_sub_(slow, step, alpha=self.alpha)

    def after_loading(self) -> None:
        """Forget initial copies: weights without a slow weight start from the next step."""
        self.start.clear()
