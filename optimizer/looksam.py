"""LookSAM, Liu et al. 2022, arXiv 2203.02714: SAM every k steps, its shear force in between."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from optimizer.parts import checks
from optimizer.parts.radius import RhoSchedule, SharpnessWrapper
from optimizer.parts.sharpness import gradients_at, perturbation, shear_force, with_shear

__all__ = ["LookSAM"]

SEARCH_SPACE = {"rho": (0.01, 0.5, "log"), "k": [2, 5, 10], "alpha": (0.1, 1.0, "linear")}
COST = {"gradient_evaluations": 1.1, "state_tensors": 1}


class LookSAM(SharpnessWrapper):
    """Gives `base` SAM's gradient g2 on steps 1, k + 1, 2k + 1 ..., and on the others

        g + alpha (||g|| / ||f||) f,   f = g2 - (<g2, g1> / ||g1||^2) g1 of the last such step.

    The perturbation has one norm over all parameters, the shear force f is taken tensor by
    tensor. A step here is one gradient that `base` asks for.
    `rho_schedule` "lr" and "gap" (towards the rise of the loss `rho_gap`): parts/radius.py.

    Cost: 1 + 1/k gradient evaluations for each one of `base`; 1 state tensor a parameter.
    """

    def __init__(self, base: Optimizer, rho: float = 0.1, k: int = 10, alpha: float = 0.7,
                 rho_schedule: RhoSchedule = "constant", rho_gap: float = 0.0) -> None:
        checks.non_negative(alpha=alpha)
        checks.at_least(1, k=k)
        super().__init__(base, rho, rho_schedule, rho_gap)
        self.k, self.alpha = k, alpha
        self.steps = 0
        self.shear: dict[Tensor, Tensor] = {}

    @torch.compiler.disable  # it would lose the step count and the shear forces
    def gradient(self, closure: Callable[[], Tensor]) -> Tensor:
        """Leave in p.grad the gradient of the class docstring; the loss at the weights."""
        loss = closure()
        with torch.no_grad():
            params = [p for p in self.parameters if p.grad is not None]
            if self.steps % self.k == 0:
                base = [p.grad for p in params]
                offsets = perturbation(params, base, self.radius, "global", "none")
                self.see(loss, gradients_at(params, offsets, closure))
                self.shear = {p: shear_force(p.grad, g) for p, g in zip(params, base, strict=True)
                              if p.grad is not None}
            else:
                for p in params:
                    if p in self.shear:
                        p.grad = with_shear(p.grad, self.shear[p], self.alpha)
        self.steps += 1
        return loss

    def get_extra_state(self) -> dict:
        """The step count and the shear forces, None for a parameter that has none; the radius."""
        return {**super().get_extra_state(), "steps": self.steps,
                "shear": [self.shear.get(p) for p in self.parameters]}

    def set_extra_state(self, state: dict) -> None:
        """Put back what `get_extra_state` returned."""
        super().set_extra_state(state)
        self.steps = state["steps"]
        self.shear = {p: f.to(p.device, copy=True)
                      for p, f in zip(self.parameters, state["shear"], strict=True)
                      if f is not None}
