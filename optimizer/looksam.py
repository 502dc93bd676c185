"""LookSAM, Liu et al. 2022, arXiv 2203.02714: SAM every k steps, its shear force in between."""


import torch
from torch import Tensor
from torch.optim import Optimizer

from .parts import checks
from .parts.base import Closure, grads_of
from .parts.radius import RhoSchedule
from .parts.sharpness import perturbation
from .parts.sharpness_aware import SharpnessWrapper

__all__ = ["LookSAM"]

SEARCH_SPACE = {"rho": (0.01, 0.5, "log"), "k": [2, 5, 10], "alpha": (0.1, 1.0, "linear")}
COST = {"gradient_evaluations": 1.1, "state_tensors": 1}
TESTED_AGAINST = "by hand, plain numpy"


class LookSAM(SharpnessWrapper):
    """Gives `base` SAM's gradient g2 in steps 1, k + 1, 2k + 1 ..., and in the others

        g + alpha (||g|| / ||f||) f,   f = g2 - (<g2, g1> / ||g1||^2) g1 of the last SAM step.

    The perturbation is normalized over all parameters; the shear force f and its norms are per
    tensor. One call of the closure by `base` counts as one step.
    `rho_schedule` "lr" and "gap" (target loss rise `rho_gap`): parts/radius.py.

    Cost: 1 + 1/k gradient evaluations per gradient of `base`; 1 state tensor per parameter.
    Raises ValueError for an invalid argument, and in a SAM step without a closure or `first_step`.
    """

    state_keys = ("shear_force",)

    def __init__(self, base: Optimizer, rho: float = 0.1, k: int = 10, alpha: float = 0.7,
                 rho_schedule: RhoSchedule = "constant", rho_gap: float = 0.0) -> None:
        checks.non_negative(alpha=alpha)
        checks.at_least(1, k=k)
        super().__init__(base, rho, rho_schedule, rho_gap, steps=0)
        self.k, self.alpha = k, alpha

    @torch.compiler.disable  # a compiled graph would lose the step count and the shear forces
    def gradient(self, closure: Closure | None) -> Tensor | None:
        """Leave the gradient of the class docstring in `p.grad`; return the loss at the weights."""
        return super().gradient(closure)

    def ascend(self, params: list[Tensor]) -> tuple[list[Tensor] | None, list[Tensor]]:
        """Return SAM's offsets every k steps; in the other steps inject the shear force."""
        step, self.scalars["steps"] = self.scalars["steps"], self.scalars["steps"] + 1
        if step % self.k:
            self.inject_shear(self.alpha)
            return None, []
        base = grads_of(params)
        return perturbation(params, base, self.radius, "global", "none"), base

    def combine(self, params: list[Tensor], base: list[Tensor]) -> None:
        """Store the shear force; the second gradient is used unchanged."""
        self.keep_shear(params, base)
