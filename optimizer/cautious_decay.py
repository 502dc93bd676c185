"""Cautious weight decay, 2025, arXiv 2510.12402: only entries that the update shrinks already."""

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
    """After the step of `base`, with W and the direction u of before it, element by element:

        W_after <- W_after - lr weight_decay k W,   k = 1 where u W >= 0 and else 0

    mask: "strict" has u W > 0 (an entry with u = 0 does not decay); "none" k = 1: plain decoupled
    decay, for rules whose other hooks want none inside. Around a hook that puts the norm back
    (Hyperball, RadialBrake) u is the direction that this hook was given.

    Cost: no gradient evaluation of its own, no state.
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
            if isinstance(hook, Delta) and hook.pins:  # the innermost one counts
                hook.handed = self.directions

    def move(self, p: Tensor, w: Tensor, u: Tensor, group: dict) -> Tensor:
        """The decay of the class docstring."""
        u = self.directions.pop(p, u)
        agreement = u.sign() * w.sign()  # no product that underflows
        k = {"cautious": agreement >= 0, "strict": agreement > 0, "none": w == w}[self.mask]
        return matrices(p.detach()) - group["lr"] * self.weight_decay * torch.where(k, w, 0)
