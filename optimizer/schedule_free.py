"""Schedule-Free, Defazio et al. 2024, arXiv 2405.15682: an average in the place of a schedule."""

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
    """Moves z by the steps that `base` takes at y, and evaluates their average x (eq. 3 to 5):

        z <- z - lr (u + weight_decay y)
        x <- (1 - c) x + c z
        y = (1 - momentum) z + momentum x

    with c the share of t^r R^weight_lr_power in its sum over steps t, R the largest rate so far. In
    training the model holds y; `eval()` puts x there. All parameters take part. momentum is beta_1:
    `base` should have none of its own (AdamW with betas (0, beta_2) makes it Schedule-Free AdamW of
    release 1.4). The rate is constant, after a warm-up if wanted: [schedule] refuses any other.

    Deviation: x and z are both kept; the authors' code recovers x, up to rounding.

    Cost: no gradient evaluation of its own; 2 state tensors per parameter, 3 while evaluating.
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
        """The three points of the class docstring."""
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
        """c of this step, counted."""
        own = self.scalars
        own["steps"] += 1
        rate = max(float(group["lr"]) for group in self.param_groups)
        own["largest_rate"] = max(own["largest_rate"], rate)
        weight = own["steps"] ** self.r * own["largest_rate"] ** self.weight_lr_power
        own["weight_sum"] += weight
        return weight / own["weight_sum"] if weight else 0.0

    def evaluated(self, p: Tensor) -> Tensor | None:
        """x."""
        return self.state[p].get("x")
