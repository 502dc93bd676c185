"""Cautious updates, Liang et al. 2024, arXiv 2411.16085: mask entries that oppose the gradient."""

from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from .parts import checks
from .parts.delta import Delta, Scope, matrices

__all__ = ["CautiousUpdate"]

SEARCH_SPACE: dict = {}
COST = {"gradient_evaluations": 1, "state_tensors": 0}
TESTED_AGAINST = "plain numpy"

Scale = Literal["mean", "count"]


class CautiousUpdate(Delta):
    """Keeps only entries of the direction u of `base` that have the sign of the gradient g:

        W <- W - lr s k u,   k = 1 where u g > 0, else 0

    scale: "mean" s = 1 / max(mean k, 1e-3), as in the authors' code; "count" s = d / (sum k + 1)
    over the d entries of a tensor, as in the paper: 25 % less on a vector of three, the same on
    large tensors.

    g is the gradient that `base` leaves in `p.grad`: after filters, and for sharpness-aware rules
    the final one. Around Muon the update is no longer orthogonal.

    Cost: no additional gradient evaluation, no state.
    Raises ValueError for an invalid argument, a rule that frees or overwrites its gradients, and if
    `base` has a weight decay or complex parameters.
    """

    stage = "update mask"

    def __init__(self, base: Optimizer, scale: Scale = "mean", scope: Scope = "matrix") -> None:
        checks.choice(Scale, scale=scale)
        super().__init__(base, scope)
        self.refuse_maximize()
        self.scale = scale
        self.versions: dict[Tensor, tuple[Tensor, int]] = {}

    def after_gradient(self) -> None:
        """Copy the weights, and record the version counters of the gradients."""
        super().after_gradient()
        self.versions = {p: (p.grad, p.grad._version) for p in self.before if p.grad is not None}

    def after_step(self) -> None:
        """Apply the update of the class docstring."""
        super().after_step()
        self.versions = {}

    def move(self, p: Tensor, w: Tensor, u: Tensor, group: dict) -> Tensor:
        """Return the updated weights. Raises ValueError if the gradient is gone or changed."""
        g, version = self.versions.get(p, (None, 0))
        if p.grad is None or (p.grad is g and g._version != version):
            raise ValueError(f"CautiousUpdate needs the gradient, which {type(self.base).__name__} "
                             "frees or overwrites in its step")
        k = (u.sign() * matrices(p.grad).sign() > 0).to(u.dtype)
        s = 1 / k.mean().clamp_min(1e-3) if self.scale == "mean" else k.numel() / (k.sum() + 1)
        return w - group["lr"] * s * torch.where(k > 0, u, 0)
