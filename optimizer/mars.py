"""MARS, Yuan et al. 2024, arXiv 2411.10438: variance-reduced gradients for any rule."""

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
    """Gives `base` the gradient c / max(1, ||c||) per tensor, where

        c = g + gamma beta1 / (1 - beta1) (g - g_prev)

    and g_prev is the gradient of the previous step, 0 at first: the authors' approximation of the
    gradient at the previous weights on this batch. The bound 1 is absolute, so the result depends
    on the scale of the loss. MARS-AdamW uses betas (0.95, 0.99) and lr 3e-3. scope: "matrix" does
    not change vectors and the AdamW track, "all" changes every gradient.

    Cost: no additional gradient evaluation; 1 state tensor per parameter in its scope.
    Raises ValueError for an invalid argument, or a `base` that compares gradients with losses.
    """

    state_keys = ("last_gradient",)

    def __init__(self, base: Optimizer, gamma: float = 0.025, beta1: float = 0.95,
                 scope: Scope = "matrix") -> None:
        checks.non_negative(gamma=gamma)
        checks.fraction(beta1=beta1)
        checks.choice(Scope, scope=scope)
        self.scope, self.gamma, self.beta1 = scope, gamma, beta1
        super().__init__(base)

    def filtered(self, g: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the corrected gradient of the class docstring, and g as the new memory."""
        change = g if memory is None else g - memory
        c = g + self.gamma * self.beta1 / (1 - self.beta1) * change
        return c / torch.linalg.vector_norm(c).clamp_min(1), g
