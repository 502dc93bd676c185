"""ASAM, Kwon et al. 2021, arXiv 2102.11600, Algorithm 1: SAM at a radius that scales with W."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from optimizer.parts import checks
from optimizer.parts.radius import RhoSchedule, SharpnessWrapper
from optimizer.parts.sharpness import EPS, gradients_at, norm_of_all

__all__ = ["ASAM"]

SEARCH_SPACE = {"rho": (0.1, 2.0, "log")}
COST = {"gradient_evaluations": 2, "state_tensors": 0}


class ASAM(SharpnessWrapper):
    """Gives `base` the gradient at W + rho T^2 g / ||T g||: rescaling a layer changes nothing.

        T = |W| + eta for tensors of two or more dimensions, 1 for vectors

    (the authors' code asks whether the parameter's name contains "weight", which takes in norm
    gains). One norm over all parameters.
    `rho_schedule` "lr" and "gap" (towards the rise of the loss `rho_gap`): parts/radius.py.

    Cost: 2 gradient evaluations for each one of `base`; no state.
    """

    def __init__(self, base: Optimizer, rho: float = 0.5, eta: float = 0.01,
                 rho_schedule: RhoSchedule = "constant", rho_gap: float = 0.0) -> None:
        checks.non_negative(eta=eta)
        super().__init__(base, rho, rho_schedule, rho_gap)
        self.eta = eta

    def gradient(self, closure: Callable[[], Tensor]) -> Tensor:
        """Leave in p.grad the gradient of the class docstring; the loss at the weights."""
        loss = closure()
        with torch.no_grad():
            params = [p for p in self.parameters if p.grad is not None]
            self.see(loss, gradients_at(params, self._offsets(params), closure))
        return loss

    def _offsets(self, params: list[Tensor]) -> list[Tensor]:
        scales = [p.abs() + self.eta if p.ndim > 1 else torch.ones_like(p) for p in params]
        scaled = [t * p.grad for t, p in zip(scales, params, strict=True)]
        norm = norm_of_all(scaled)
        return [t * s * (self.radius / (norm + EPS)) for t, s in zip(scales, scaled, strict=True)]
