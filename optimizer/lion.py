"""Lion, Chen et al. 2023, arXiv 2302.06675, Algorithm 2: the sign of an interpolated momentum."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .parts import checks
from .parts.base import grads_of
from .parts.first_order import FirstOrder

__all__ = ["Lion"]

SEARCH_SPACE = {
    "lr": (1e-5, 1e-2, "log"),
    "weight_decay": (1e-2, 10.0, "log"),
    "betas": [[0.9, 0.99], [0.95, 0.98]],
}
COST = {"gradient_evaluations": 1, "state_tensors": 1}
TESTED_AGAINST = "by hand, pytorch_optimizer"


class Lion(FirstOrder):
    """Moves every entry by lr against the sign of its interpolated momentum.

        W <- (1 - lr weight_decay) W
        c = beta1 m + (1 - beta1) g
        W <- W - lr sign(c)            (soft: c / (tau RMS(c) + |c|), RMS over the tensor)
        m <- beta2 m + (1 - beta2) g

    tau = 0 is Lion; tau > 0 smooths the sign near zero and keeps the scale invariance. Rule of
    thumb: lr 3 to 10 times smaller and weight_decay 3 to 10 times larger than AdamW's. A weight
    decay that rises along a cosine (dmf-archive/ARS, optimizer summary 4.4) depends on the length
    of the run: use `weight_decay = "cosine"` in the [schedule] table, for any optimizer.

    Cost: 1 gradient evaluation per step, 1 state tensor per parameter.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter.
    """

    def __init__(self, params: Iterable, lr: float = 1e-4,
                 betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0,
                 tau: float = 0.0) -> None:
        checks.non_negative(lr=lr, weight_decay=weight_decay, tau=tau)
        checks.pair_of_fractions(betas=betas)
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay,
                                  "tau": tau})

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        momenta = self.buffers(params, "exp_avg")
        grads = [g.to(m.dtype) for g, m in zip(grads_of(params), momenta, strict=True)]
        beta1, beta2 = group["betas"]
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        # lerp(g, m, beta1) = beta1 m + (1 - beta1) g, into a new tensor.
        directions = torch._foreach_lerp(grads, momenta, beta1)
        for p, c in zip(params, directions, strict=True):
            p.add_(soft_sign(c, group["tau"]), alpha=-group["lr"])
        torch._foreach_lerp_(momenta, grads, 1 - beta2)


def soft_sign(c: Tensor, tau: float) -> Tensor:
    """Return sign(c) for tau = 0, else c / (tau RMS(c) + |c|), in the shape of c; 0 stays 0."""
    if tau == 0:
        return c.sign()
    scale = tau * c.square().mean().sqrt() + c.abs()
    return c / scale.clamp_min(torch.finfo(c.dtype).tiny)
