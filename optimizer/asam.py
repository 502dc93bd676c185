"""ASAM, Kwon et al. 2021, arXiv 2102.11600, Algorithm 1: SAM with a perturbation scaled by |W|."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from .parts import checks
from .parts.base import grads_of
from .parts.radius import RhoSchedule
from .parts.sharpness import EPS, norm_of_all
from .parts.sharpness_aware import SharpnessWrapper

__all__ = ["ASAM"]

SEARCH_SPACE = {"rho": (0.1, 2.0, "log")}
COST = {"gradient_evaluations": 2, "state_tensors": 0}
TESTED_AGAINST = "by hand, plain numpy"


class ASAM(SharpnessWrapper):
    """Gives `base` the gradient at W + rho T^2 g / ||T g||, invariant to the scale of a layer.

        T = |W| + eta for tensors of two or more dimensions, 1 for vectors

    The norm is over all parameters. Deviation: the authors' code (SamsungLabs/ASAM dc9b513) uses
    |W| + eta for every parameter with "weight" in its name, which includes the gains of norms.
    `rho_schedule` "lr" and "gap" (target loss rise `rho_gap`): parts/radius.py.

    Cost: 2 gradient evaluations per gradient of `base`; no state.
    Raises ValueError for an invalid argument, and in a step without a closure or `first_step`.
    """

    def __init__(self, base: Optimizer, rho: float = 0.5, eta: float = 0.01,
                 rho_schedule: RhoSchedule = "constant", rho_gap: float = 0.0) -> None:
        checks.non_negative(eta=eta)
        super().__init__(base, rho, rho_schedule, rho_gap)
        self.eta = eta

    def ascend(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the offsets of the class docstring; the second gradient is used unchanged."""
        scales = [p.abs() + self.eta if p.ndim > 1 else torch.ones_like(p) for p in params]
        scaled = [t * g for t, g in zip(scales, grads_of(params), strict=True)]
        norm = norm_of_all(scaled)
        rho = self.radius
        return [t * s * (rho / (norm + EPS)) for t, s in zip(scales, scaled, strict=True)], []
