"""GSAM, Zhuang et al. 2022, arXiv 2203.08065, Algorithm 1: SAM that also closes the gap to it."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from optimizer.parts import checks
from optimizer.parts.sharded import total
from optimizer.parts.sharpness import EPS, gradients_at, perturbation
from optimizer.parts.wrapper import ClosureWrapper

__all__ = ["GSAM"]

SEARCH_SPACE = {"rho": (0.01, 0.5, "log"), "alpha": (0.05, 0.5, "log")}
COST = {"gradient_evaluations": 2, "state_tensors": 0}


class GSAM(ClosureWrapper):
    """Gives `base` SAM's gradient less a share of what the base gradient has beside it.

        g2 = gradient at W + rho_t g1 / ||g1||
        vert = g1 - (<g1, g2> / ||g2||^2) g2           (g1 orthogonal to g2)
        g = g2 - alpha vert

    All inner products run over all parameters together. rho_t = rho lr / initial lr: it follows
    the learning-rate schedule, as the authors have it, where a schedule noted the initial rate.

    Cost: 2 gradient evaluations for each one of `base`; no state.
    """

    def __init__(self, base: Optimizer, rho: float = 0.05, alpha: float = 0.2) -> None:
        checks.non_negative(rho=rho, alpha=alpha)
        super().__init__(base)
        self.rho, self.alpha = rho, alpha

    def gradient(self, closure: Callable[[], Tensor]) -> Tensor:
        """Leave in p.grad the gradient of the class docstring; the loss at the weights."""
        loss = closure()
        group = self.param_groups[0]
        initial = group.get("initial_lr", group["lr"])
        rho = self.rho * (group["lr"] / initial if initial else 0.0)
        with torch.no_grad():
            params = [p for p in self.parameters if p.grad is not None]
            base = [p.grad for p in params]
            gradients_at(params, perturbation(params, base, rho, "global", "none"), closure)
            pairs = [(p, g) for p, g in zip(params, base, strict=True) if p.grad is not None]
            product = total(sum(((g * p.grad).sum() for p, g in pairs), torch.zeros(())))
            square = total(sum(((p.grad * p.grad).sum() for p, _ in pairs), torch.zeros(())))
            for p, g in pairs:
                vertical = g - product / (square + EPS) * p.grad
                p.grad = p.grad - self.alpha * vertical
        return loss
