"""MARS, Yuan et al. 2024, arXiv 2411.10438: gradients corrected by their change, for any rule."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from .parts import checks
from .parts.delta import Scope
from .parts.filtered import FilterWrapper

__all__ = ["MARS"]

SEARCH_SPACE = {"gamma": (0.005, 0.1, "log")}
COST = {"gradient_evaluations": 1, "state_tensors": 1}
TESTED_AGAINST = "plain numpy"


class MARS(FilterWrapper):
    """Gives `base` the gradient c / max(1, ||c||), tensor by tensor, where

        c = g + gamma beta1 / (1 - beta1) (g - g_prev)

    and g_prev, 0 at first, is the gradient of the step before: the authors' approximation of the
    last weights' gradient on this batch. The norm is bounded by 1 whatever the scale of the loss,
    so the method depends on it. MARS-AdamW has betas (0.95, 0.99) and lr 3e-3. scope: "matrix"
    leaves vectors and the AdamW track alone.

    Cost: no gradient evaluation of its own; 1 state tensor per parameter in its scope.
    """

    memory = "last_gradient"

    def __init__(self, base: Optimizer, gamma: float = 0.025, beta1: float = 0.95,
                 scope: Scope = "matrix") -> None:
        checks.non_negative(gamma=gamma)
        checks.fraction(beta1=beta1)
        checks.choice(Scope, scope=scope)
        self.scope, self.gamma, self.beta1 = scope, gamma, beta1
        super().__init__(base)

    def filtered(self, g: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """The correction of the class docstring."""
        change = g if memory is None else g - memory
        c = g + self.gamma * self.beta1 / (1 - self.beta1) * change
        return c / torch.linalg.vector_norm(c).clamp_min(1), g
