"""Schedule-Free, Defazio et al. 2024, arXiv 2405.15682: averaging instead of a schedule."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from .parts import checks
from .parts.averaged import TwoWeights, wide
from .parts.delta import Delta

__all__ = ["ScheduleFree"]

SEARCH_SPACE = {"momentum": [0.8, 0.9, 0.95, 0.98]}
COST = {"gradient_evaluations": 1, "state_tensors": 2}
TESTED_AGAINST = "plain numpy"


class ScheduleFree(TwoWeights, Delta):
    """Applies the updates of `base`, computed at y, to z, and evaluates the average x (eq. 3 to 5):

        z <- z - lr (u + weight_decay y)
        x <- (1 - c) x + c z
        y = (1 - momentum) z + momentum x

    u is the direction of `base` at y. c = w_t / (sum of w_s up to t) with the weight w_t =
    t^r R^weight_lr_power of step t, R the largest lr so far. The model holds y in training;
    `eval()` replaces it by x. All parameters take part. momentum is beta_1, so `base` should have
    no momentum: AdamW with betas (0, beta_2) gives Schedule-Free AdamW of release 1.4. lr must be
    constant, optionally after a warm-up: [schedule] rejects any other.

    Deviation: x and z are both stored; the authors' code recomputes x, up to rounding.

    Cost: no additional gradient evaluation; 2 state tensors per parameter, 3 while evaluating.
    Raises ValueError for an invalid argument, a `base` with its own weights for evaluation, and a
    step in eval mode.
    """

    stage, accepts_decay = "outer step", True
    constant_rate = True

    def __init__(self, base: Optimizer, momentum: float = 0.9, weight_decay: float = 0.0,
                 weight_lr_power: float = 2.0, r: float = 0.0) -> None:
        checks.fraction(momentum=momentum)
        checks.non_negative(weight_decay=weight_decay, weight_lr_power=weight_lr_power, r=r)
        super().__init__(base, "all")
        self.momentum, self.weight_decay = momentum, weight_decay
        self.weight_lr_power, self.r = weight_lr_power, r
        self.keep_scalars(steps=0, largest_rate=0.0, weight_sum=0.0, evaluating=0)

    @torch.compiler.disable
    def after_step(self) -> None:
        """Update z and x, and set the model's weights to y, as in the class docstring."""
        c = self._average_rate()
        for group in self.param_groups:
            decay = float(group["lr"]) * self.weight_decay
            for p in group["params"]:
                if p in self.before:
                    y = wide(self.before[p])
                    z, x = (self.state[p].setdefault(name, y.clone()) for name in ("z", "x"))
                    z.add_(p.to(y.dtype) - y).sub_(y, alpha=decay)
                    p.copy_(z.lerp(x.lerp_(z, c), self.momentum))

    def _average_rate(self) -> float:
        """Count the step and return its c."""
        scalars = self.scalars
        scalars["steps"] += 1
        rate = max(float(group["lr"]) for group in self.param_groups)
        scalars["largest_rate"] = max(scalars["largest_rate"], rate)
        weight = scalars["steps"] ** self.r * scalars["largest_rate"] ** self.weight_lr_power
        scalars["weight_sum"] += weight
        return weight / scalars["weight_sum"] if weight else 0.0

    def evaluated(self, p: Tensor) -> Tensor | None:
        """Return x."""
        return self.state[p].get("x")
