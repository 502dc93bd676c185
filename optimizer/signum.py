"""Signum, Bernstein et al. 2018, arXiv 1802.04434, Algorithm 2: the sign of the momentum."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .parts import checks
from .parts.base import grads_of
from .parts.first_order import FirstOrder

__all__ = ["Signum"]

SEARCH_SPACE = {
    "lr": (1e-5, 1e-2, "log"),
    "weight_decay": (1e-2, 10.0, "log"),
    "momentum": [0.9, 0.95, 0.99],
}
COST = {"gradient_evaluations": 1, "state_tensors": 1}
TESTED_AGAINST = "by hand, pytorch_optimizer"


class Signum(FirstOrder):
    """Moves every entry by lr against the sign of its momentum; momentum = 0 is signSGD.

        m <- momentum m + (1 - momentum) g      (l2: g <- g + weight_decay W first)
        W <- (1 - lr weight_decay) W - lr sign(m)

    The weight decay is decoupled in the paper and added to the gradient in the authors' code
    (`l2=True`).

    Cost: 1 gradient evaluation per step, 1 state tensor per parameter.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter.
    """

    def __init__(self, params: Iterable, lr: float = 1e-4, momentum: float = 0.9,
                 weight_decay: float = 0.0, l2: bool = False) -> None:
        checks.non_negative(lr=lr, weight_decay=weight_decay)
        checks.fraction(momentum=momentum)
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay,
                                  "l2": l2})

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        momenta = self.buffers(params, "momentum_buffer")
        grads = [g.to(m.dtype) for g, m in zip(grads_of(params), momenta, strict=True)]
        decay = group["weight_decay"]
        if group["l2"]:
            weights = [p.to(m.dtype) for p, m in zip(params, momenta, strict=True)]
            grads = list(torch._foreach_add(grads, weights, alpha=decay))
        else:
            torch._foreach_mul_(params, 1 - group["lr"] * decay)
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        for p, m in zip(params, momenta, strict=True):
            p.add_(m.sign(), alpha=-group["lr"])
