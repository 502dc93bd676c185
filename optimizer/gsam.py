"""GSAM, Zhuang et al. 2022, arXiv 2203.08065, Algorithm 1: SAM that also reduces the gap."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from .parts import checks
from .parts.base import grad_of, grads_of
from .parts.distributed.collective import total
from .parts.radius import RhoSchedule
from .parts.sharpness import EPS, finite, perturbation
from .parts.sharpness_aware import SharpnessWrapper

__all__ = ["GSAM"]

SEARCH_SPACE = {"rho": (0.01, 0.5, "log"), "alpha": (0.05, 0.5, "log")}
COST = {"gradient_evaluations": 2, "state_tensors": 0}
TESTED_AGAINST = "by hand, plain numpy, pytorch_optimizer"


class GSAM(SharpnessWrapper):
    """Gives `base` SAM's gradient minus a share of the base gradient's part orthogonal to it.

        g2 = gradient at W + rho_t g1 / ||g1||
        vert = g1 - (<g1, g2> / ||g2||^2) g2           (g1 orthogonal to g2)
        g = g2 - alpha vert

    All inner products run over all parameters together. rho_t = rho lr / initial lr follows the
    learning-rate schedule, as in the authors' code, where groups have an `initial_lr`;
    `rho_schedule` "constant" and "gap" (target loss rise `rho_gap`): parts/radius.py.

    Cost: 2 gradient evaluations per gradient of `base`; no state.
    """

    def __init__(self, base: Optimizer, rho: float = 0.05, alpha: float = 0.2,
                 rho_schedule: RhoSchedule = "lr", rho_gap: float = 0.0) -> None:
        checks.non_negative(alpha=alpha)
        super().__init__(base, rho, rho_schedule, rho_gap)
        self.alpha = alpha

    def ascend(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """SAM's offsets; `combine` needs the base gradients."""
        base = grads_of(params)
        return perturbation(params, base, self.radius, "global", "none"), base

    def combine(self, params: list[Tensor], base: list[Tensor]) -> None:
        """g of the class docstring, as new tensors."""
        pairs = [(p, g) for p, g in zip(params, base, strict=True) if p.grad is not None]
        product = total(sum(((g * grad_of(p)).sum() for p, g in pairs), torch.zeros(())))
        square = total(sum((grad_of(p).square().sum() for p, _ in pairs), torch.zeros(())))
        ratio = finite(product / (square + EPS))
        for p, g in pairs:
            second = grad_of(p)
            vertical = g - ratio * second
            p.grad = second - self.alpha * vertical
