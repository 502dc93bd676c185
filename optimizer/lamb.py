"""LAMB, You et al. 2019, arXiv 1904.00962, Algorithm 2: Adam with a trust ratio per tensor."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .parts import checks
from .parts.adam import moments, update_moments, whitened
from .parts.base import grads_of
from .parts.first_order import FirstOrder

__all__ = ["LAMB"]

SEARCH_SPACE = {
    "lr": (1e-4, 1e-1, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "betas": [[0.9, 0.95], [0.9, 0.999]],
}
COST = {"gradient_evaluations": 1, "state_tensors": 2}
TESTED_AGAINST = "by hand, plain numpy"


class LAMB(FirstOrder):
    """Adam's direction, weight decay included, scaled to lr times the norm of the weights.

        u = m_hat / (sqrt(v_hat) + eps) + weight_decay W
        W <- W - lr (||W|| / ||u||) u        (norms per tensor; ratio 1 if one of them is 0)

    Moments are bias-corrected as in timm; the paper's phi is the identity. In groups without weight
    decay the ratio is 1, unless `always_adapt` (timm's rule, for biases and gains).

    Cost: 1 gradient evaluation per step, 2 state tensors per parameter.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter.
    """

    def __init__(self, params: Iterable, lr: float = 1e-3,
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6,
                 weight_decay: float = 0.01, always_adapt: bool = False) -> None:
        checks.non_negative(lr=lr, eps=eps, weight_decay=weight_decay)
        checks.pair_of_fractions(betas=betas)
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps,
                                  "weight_decay": weight_decay, "always_adapt": always_adapt})

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        exp_avgs, exp_avg_sqs, steps = moments(self.state, params)
        grads = grads_of(params)
        update_moments(exp_avgs, exp_avg_sqs, grads, grads, group["betas"])
        directions = whitened(exp_avgs, exp_avg_sqs, steps, group["betas"], group["eps"])
        for p, u in zip(params, directions, strict=True):
            u.add_(p.to(u.dtype), alpha=group["weight_decay"])
            if group["weight_decay"] or group["always_adapt"]:
                u.mul_(trust_ratio(p, u))
            p.add_(u.to(p.dtype), alpha=-group["lr"])


def trust_ratio(weight: Tensor, update: Tensor) -> Tensor:
    """Return ||weight|| / ||update||, 1 if either is 0, as a 0-d tensor on the device."""
    norms = [torch.linalg.vector_norm(t, dtype=update.dtype) for t in (weight, update)]
    ratio = norms[0] / norms[1]
    return torch.where((norms[0] > 0) & (norms[1] > 0), ratio, torch.ones_like(ratio))
