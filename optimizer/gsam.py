"""GSAM, Zhuang et al. 2022, arXiv 2203.08065, Algorithm 1: SAM that reduces the surrogate gap."""

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
    """Gives `base` SAM's gradient g2 minus alpha times the component of g1 orthogonal to g2.

        g2 = gradient at W + rho_t g1 / ||g1||
        vert = g1 - (<g1, g2> / ||g2||^2) g2
        g = g2 - alpha vert

    Inner products and norms are over all parameters. If groups have an `initial_lr`, rho_t =
    rho lr / initial lr follows the learning-rate schedule, as in the authors' code
    (juntang-zhuang/GSAM 338ef83); `rho_schedule` "constant" and "gap" (target loss rise `rho_gap`):
    parts/radius.py.

    Cost: 2 gradient evaluations per gradient of `base`; no state.
    Raises ValueError for an invalid argument, and in a step without a closure or `first_step`.
    """

    def __init__(self, base: Optimizer, rho: float = 0.05, alpha: float = 0.2,
                 rho_schedule: RhoSchedule = "lr", rho_gap: float = 0.0) -> None:
        checks.non_negative(alpha=alpha)
        super().__init__(base, rho, rho_schedule, rho_gap)
        self.alpha = alpha

    def ascend(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return SAM's offsets, and the gradients at the weights for `combine`."""
        base = grads_of(params)
        return perturbation(params, base, self.radius, "global", "none"), base

    def combine(self, params: list[Tensor], base: list[Tensor]) -> None:
        """Replace `p.grad` by g of the class docstring, as new tensors."""
        pairs = [(p, g) for p, g in zip(params, base, strict=True) if p.grad is not None]
        product = total(sum(((g * grad_of(p)).sum() for p, g in pairs), torch.zeros(())))
        square = total(sum((grad_of(p).square().sum() for p, _ in pairs), torch.zeros(())))
        ratio = finite(product / (square + EPS))
        for p, g in pairs:
            second = grad_of(p)
            vertical = g - ratio * second
            p.grad = second - self.alpha * vertical
