"""Cautious weight decay, 2025, arXiv 2510.12402: decay only entries that the update shrinks."""

from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from .parts import checks
from .parts.delta import Delta, Scope, matrices
from .parts.wrapper import wrappers_of

__all__ = ["CautiousDecay"]

SEARCH_SPACE = {"weight_decay": (1e-3, 1.0, "log")}
COST = {"gradient_evaluations": 1, "state_tensors": 0}
TESTED_AGAINST = "plain numpy"

Mask = Literal["cautious", "strict", "none"]


class CautiousDecay(Delta):
    """Decays the weights after the step of `base`, per entry, where the update has their sign:

        W_after <- W_after - lr weight_decay k W,   k = 1 where u W >= 0, else 0

    W are the weights before the step and u is the direction of `base`. mask: "cautious" as above;
    "strict" k = 1 where u W > 0 (an entry with u = 0 does not decay); "none" k = 1 everywhere:
    plain decoupled decay, for a `base` whose wrappers do not accept a weight decay inside. Around a
    wrapper that resets the norm (Hyperball, RadialBrake) u is the direction before that wrapper, or
    before the outer one of several.

    Cost: no additional gradient evaluation, no state.
    Raises ValueError for an invalid argument, and if `base` has a weight decay or complex
    parameters.
    """

    stage = "decay"

    def __init__(self, base: Optimizer, weight_decay: float = 0.1, mask: Mask = "cautious",
                 scope: Scope = "matrix") -> None:
        checks.non_negative(weight_decay=weight_decay)
        checks.choice(Mask, mask=mask)
        super().__init__(base, scope)
        self.weight_decay, self.mask = weight_decay, mask
        self.directions: dict[Tensor, Tensor] = {}
        for hook in wrappers_of(base):
            if isinstance(hook, Delta) and hook.pins:
                hook.handed = self.directions

    def move(self, p: Tensor, w: Tensor, u: Tensor, group: dict) -> Tensor:
        """Return the decayed weights of the class docstring."""
        u = self.directions.pop(p, u)
        agreement = u.sign() * w.sign()  # the product u w could underflow
        k = {"cautious": agreement >= 0, "strict": agreement > 0, "none": w == w}[self.mask]
        return matrices(p.detach()) - group["lr"] * self.weight_decay * torch.where(k, w, 0)
