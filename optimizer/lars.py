"""LARS, You et al. 2017, arXiv 1708.03888, Algorithm 1: SGD with a trust ratio per tensor."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .parts import checks
from .parts.base import grad_of
from .parts.first_order import FirstOrder

__all__ = ["LARS"]

RECIPE = 2  # always_adapt by default

SEARCH_SPACE = {
    "lr": (0.1, 10.0, "log"),
    "weight_decay": (1e-5, 1e-2, "log"),
    "momentum": [0.0, 0.9, 0.95],
}
COST = {"gradient_evaluations": 1, "state_tensors": 1}
TESTED_AGAINST = "by hand, torch.optim.SGD, pytorch_optimizer"


class LARS(FirstOrder):
    """SGD with momentum on a gradient scaled to trust_coeff times the norm of the weights.

        r = trust_coeff ||W|| / (||g|| + weight_decay ||W|| + eps)     (1 if ||W|| or ||g|| is 0)
        b <- momentum b + r (g + weight_decay W)
        W <- W - lr b                        (nesterov: r (g + weight_decay W) + momentum b)

    Norms are per tensor. As in timm, lr is outside the buffer b (in the paper inside: the two
    differ when lr changes). `always_adapt=False` is timm's rule: r = 1 in groups without weight
    decay. Deviation from timm: momentum is 0.9 by default, as in the paper (timm: 0).

    Cost: 1 gradient evaluation per step, 1 state tensor per parameter.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter.
    """

    def __init__(self, params: Iterable, lr: float = 1.0, momentum: float = 0.9,
                 nesterov: bool = False, weight_decay: float = 0.0, trust_coeff: float = 1e-3,
                 eps: float = 1e-8, always_adapt: bool = True) -> None:
        checks.non_negative(lr=lr, weight_decay=weight_decay, trust_coeff=trust_coeff, eps=eps)
        checks.fraction(momentum=momentum)
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay,
            "trust_coeff": trust_coeff, "eps": eps, "always_adapt": always_adapt})

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        momentum, decay = group["momentum"], group["weight_decay"]
        for p, b in zip(params, self.buffers(params, "momentum_buffer"), strict=True):
            g, w = grad_of(p).to(b.dtype), p.to(b.dtype)
            direction = g + decay * w
            if decay or group["always_adapt"]:
                direction *= trust_ratio(w, g, decay, group["trust_coeff"], group["eps"])
            b.mul_(momentum).add_(direction)
            update = direction + momentum * b if group["nesterov"] else b
            p.add_(update.to(p.dtype), alpha=-group["lr"])


def trust_ratio(weight: Tensor, grad: Tensor, decay: float, coeff: float, eps: float) -> Tensor:
    """Return coeff ||W|| / (||g|| + decay ||W|| + eps), 1 if a norm is 0, as a 0-d tensor."""
    w, g = torch.linalg.vector_norm(weight), torch.linalg.vector_norm(grad)
    ratio = coeff * w / (g + decay * w + eps)
    return torch.where((w > 0) & (g > 0), ratio, torch.ones_like(ratio))
