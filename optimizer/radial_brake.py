"""Radial brake, NVIDIA 2026 (Emerging-Optimizers) and modded-nanogpt, track 3: damp norm growth."""

from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from .parts import checks
from .parts.delta import Delta, Scope, norm, over

__all__ = ["RadialBrake"]

SEARCH_SPACE = {"outward": (0.0, 1.0, "linear")}
COST = {"gradient_evaluations": 1, "state_tensors": 0}
TESTED_AGAINST = "plain numpy"

Kind = Literal["pin", "norm"]


class RadialBrake(Delta):
    """Scales the radial part of each matrix's step by s: `outward` if its norm grows, or `inward`.

    kind "pin": r = (<u, W> / ||W||^2) W is the radial part of u; the norm grows if <u, W> < 0.

        u <- u - r + s r,   X = W - lr u,   W <- X (||W|| - lr <u, W> / ||W||) / ||X||

    A tangential step then does not change the norm. kind "norm" is NVIDIA's, with the norms n0 and
    n1 before and after the step of `base`: W <- W_base (n0 + s (n1 - n0)) / n1, which keeps s times
    the second-order growth of a tangential step. Norms are Frobenius norms per matrix (m, n).

    Cost: no additional gradient evaluation, no state.
    Raises ValueError for an invalid argument, and if `base` has a weight decay or complex
    parameters.
    """

    stage, pins = "update length", True

    def __init__(self, base: Optimizer, outward: float = 0.5, inward: float = 1.0,
                 kind: Kind = "pin", scope: Scope = "matrix") -> None:
        checks.non_negative(outward=outward, inward=inward)
        checks.choice(Kind, kind=kind)
        super().__init__(base, scope)
        self.outward, self.inward, self.kind = outward, inward, kind

    def move(self, p: Tensor, w: Tensor, u: Tensor, group: dict) -> Tensor:
        """Return the weights after the step of the class docstring."""
        n0, lr = norm(w), group["lr"]
        if self.kind == "norm":
            x = w - lr * u
            growth = norm(x) - n0
        else:
            unit = over(w, n0)
            radial = (u * unit).sum((-2, -1), keepdim=True)
            growth = -lr * radial
        s = torch.where(growth > 0, torch.full_like(growth, self.outward), self.inward)
        if self.kind == "pin":
            x = w - lr * (u + (s - 1) * radial * unit)
        # A matrix of zeros has no radial direction.
        return torch.where(n0 > 0, over(n0 + s * growth, norm(x)) * x, x)
