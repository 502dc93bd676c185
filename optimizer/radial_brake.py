"""Radial brake, NVIDIA 2026 (Emerging-Optimizers), and track 3 of modded-nanogpt: less growth."""

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
    """Scales the radial part of each matrix's step by s: `outward` if it grows, else `inward`.

    kind "pin", with the radial part r = (<u, W> / ||W||^2) W of u, which grows if <u, W> < 0:

        u <- u - r + s r,   X = W - lr u,   W <- X (||W|| - lr <u, W> / ||W||) / ||X||

    so that a tangential step does not grow at all. kind "norm" is NVIDIA's, by the norms n0 and n1
    before and after the step of `base`: W <- W_base (n0 + s (n1 - n0)) / n1, which keeps s times
    the second-order growth of a tangential step.

    Cost: no gradient evaluation of its own, no state.
    """

    stage, pins = "update length", True

    def __init__(self, base: Optimizer, outward: float = 0.5, inward: float = 1.0,
                 kind: Kind = "pin", scope: Scope = "matrix") -> None:
        checks.non_negative(outward=outward, inward=inward)
        checks.choice(Kind, kind=kind)
        super().__init__(base, scope)
        self.outward, self.inward, self.kind = outward, inward, kind

    def move(self, p: Tensor, w: Tensor, u: Tensor, group: dict) -> Tensor:
        """The step of the class docstring."""
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
        # A matrix of zeros has no radius to keep.
        return torch.where(n0 > 0, over(n0 + s * growth, norm(x)) * x, x)
