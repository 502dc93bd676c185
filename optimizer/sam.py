"""SAM, Foret et al. 2020, arXiv 2010.01412: descend by the gradient at the worst point nearby."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from optimizer.parts.radius import RhoSchedule, SharpnessWrapper
from optimizer.parts.sharpness import gradients_at, perturbation

__all__ = ["SAM"]

SEARCH_SPACE = {"rho": (0.01, 0.5, "log")}
COST = {"gradient_evaluations": 2, "state_tensors": 0}


class SAM(SharpnessWrapper):
    """Gives `base` the gradient at W + rho g / ||g|| instead of g (Algorithm 1, eq. 2).

    The norm is taken over all parameters together. SAM is a change of the closure: each time
    `base` asks for a gradient it gets the one at the perturbed weights, with the weights
    restored and the loss at the weights themselves; so it goes around any optimizer.
    `rho_schedule` "lr" and "gap" (towards the rise of the loss `rho_gap`): parts/radius.py.

    local: with several processes each perturbs by the gradient of its own part of the batch
    (m-sharpness, section 4.1), which is not sent: half the traffic, another result. The closure
    must take `synchronize=False` for it.

    Cost: 2 gradient evaluations for each one of `base`; no state.
    """

    def __init__(self, base: Optimizer, rho: float = 0.05, rho_schedule: RhoSchedule = "constant",
                 rho_gap: float = 0.0, local: bool = False) -> None:
        super().__init__(base, rho, rho_schedule, rho_gap)
        self.local = local

    def gradient(self, closure: Callable[[], Tensor]) -> Tensor:
        """Leave in p.grad the gradient of the class docstring; the loss at the weights."""
        loss = closure(synchronize=False) if self.local else closure()
        with torch.no_grad():
            params = [p for p in self.parameters if p.grad is not None]
            offsets = perturbation(params, [p.grad for p in params], self.radius, "global", "none")
            self.see(loss, gradients_at(params, offsets, closure))
        return loss
