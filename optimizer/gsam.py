"""GSAM, Zhuang et al. 2022, arXiv 2203.08065, Algorithm 1: SAM that also closes the gap to it."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from optimizer.parts import checks
from optimizer.parts.radius import RhoSchedule, SharpnessWrapper
from optimizer.parts.sharded import total
from optimizer.parts.sharpness import EPS, gradients_at, perturbation

__all__ = ["GSAM"]

SEARCH_SPACE = {"rho": (0.01, 0.5, "log"), "alpha": (0.05, 0.5, "log")}
COST = {"gradient_evaluations": 2, "state_tensors": 0}


class GSAM(SharpnessWrapper):
    """Gives `base` SAM's gradient less a share of what the base gradient has beside it.

        g2 = gradient at W + rho_t g1 / ||g1||
        vert = g1 - (<g1, g2> / ||g2||^2) g2           (g1 orthogonal to g2)
        g = g2 - alpha vert

    All inner products run over all parameters together. rho_t = rho lr / initial lr: it follows
    the learning-rate schedule, as the authors have it, where a schedule noted the initial rate;
    `rho_schedule` "constant" and "gap" (towards the rise of the loss `rho_gap`): parts/radius.py.

    Cost: 2 gradient evaluations for each one of `base`; no state.
    """

    def __init__(self, base: Optimizer, rho: float = 0.05, alpha: float = 0.2,
                 rho_schedule: RhoSchedule = "lr", rho_gap: float = 0.0) -> None:
        checks.non_negative(alpha=alpha)
        super().__init__(base, rho, rho_schedule, rho_gap)
        self.alpha = alpha

    def gradient(self, closure: Callable[[], Tensor]) -> Tensor:
        """Leave in p.grad the gradient of the class docstring; the loss at the weights."""
        loss = closure()
        with torch.no_grad():
            params = [p for p in self.parameters if p.grad is not None]
            base = [p.grad for p in params]
            offsets = perturbation(params, base, self.radius, "global", "none")
            self.see(loss, gradients_at(params, offsets, closure))
            pairs = [(p, g) for p, g in zip(params, base, strict=True) if p.grad is not None]
            product = total(sum(((g * p.grad).sum() for p, g in pairs), torch.zeros(())))
            square = total(sum(((p.grad * p.grad).sum() for p, _ in pairs), torch.zeros(())))
            for p, g in pairs:
                vertical = g - product / (square + EPS) * p.grad
                p.grad = p.grad - self.alpha * vertical
        return loss
