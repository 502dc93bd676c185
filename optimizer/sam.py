"""SAM, Foret et al. 2020, arXiv 2010.01412: descend by the gradient at the worst point nearby."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from optimizer.parts import checks
from optimizer.parts.sharpness import gradients_at, perturbation
from optimizer.parts.wrapper import ClosureWrapper

__all__ = ["SAM"]

SEARCH_SPACE = {"rho": (0.01, 0.5, "log")}
COST = {"gradient_evaluations": 2, "state_tensors": 0}


class SAM(ClosureWrapper):
    """Gives `base` the gradient at W + rho g / ||g|| instead of g (Algorithm 1, eq. 2).

    The norm is taken over all parameters together. SAM is a change of the closure: each time
    `base` asks for a gradient it gets the one at the perturbed weights, with the weights
    restored and the loss at the weights themselves; so it goes around any optimizer.

    Cost: 2 gradient evaluations for each one of `base`; no state.
    """

    def __init__(self, base: Optimizer, rho: float = 0.05) -> None:
        checks.non_negative(rho=rho)
        super().__init__(base)
        self.rho = rho

    def gradient(self, closure: Callable[[], Tensor]) -> Tensor:
        """Leave in p.grad the gradient of the class docstring; the loss at the weights."""
        loss = closure()
        with torch.no_grad():
            params = [p for p in self.parameters if p.grad is not None]
            grads = [p.grad for p in params]
            gradients_at(params, perturbation(params, grads, self.rho, "global", "none"), closure)
        return loss
