"""Muon, Jordan et al. 2024: momentum, orthogonalized by Newton-Schulz, for hidden matrices.

Moonlight's scale: Liu et al. 2025, arXiv 2502.16982.
"""

from collections.abc import Iterable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from .parts import checks
from .parts.base import grads_of
from .parts.equilibrate import Equilibrate, equilibrated_polar
from .parts.matrix import MatrixOptimizer
from .parts.polar import NsDtype, Orthogonalizer, as_matrices, msign, polar_options

__all__ = ["Muon"]

SEARCH_SPACE = {
    "lr": (1e-3, 1e-1, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "momentum": [0.9, 0.95, 0.98],
    "adamw.lr": (1e-4, 1e-2, "log"),
}
COST = {"gradient_evaluations": 1, "state_tensors": 1}
TESTED_AGAINST = "by hand, plain numpy; equilibrate: the authors' class"

EPS = 1e-8  # MuonEq's, added to squared norms
Scale = Literal["keller", "moonlight"]
ConvScale = Literal["flattened", "keller"]


def momentum_direction(
    grads: list[Tensor], buffers: list[Tensor], momentum: float, nesterov: bool
) -> list[Tensor]:
    """Update M <- momentum M + (1 - momentum) g in place; return M, or with Nesterov
    momentum M + (1 - momentum) g of the new M. Works on lists of tensors of any shape."""
    grads = [g.to(m.dtype) for g, m in zip(grads, buffers, strict=True)]
    torch._foreach_lerp_(buffers, grads, 1 - momentum)
    return list(torch._foreach_lerp(grads, buffers, momentum)) if nesterov else buffers


def step_scale(shape: torch.Size, scale: str, conv_scale: str) -> float:
    """Return c(m, n) for a tensor's shape: "keller" sqrt(max(1, m/n)), "moonlight"
    0.2 sqrt(max(m, n)).

    (m, n) of a convolution (out, in, kh, kw) is (out, in * kh * kw) for conv_scale "flattened", and
    (kh, kw) for "keller", as in Keller's code.
    """
    m, n = as_matrices(torch.empty(shape, device="meta")).shape[-2:]
    if len(shape) > 3 and conv_scale == "keller":
        m, n = shape[-2:]
    return max(1.0, m / n) ** 0.5 if scale == "keller" else 0.2 * max(m, n) ** 0.5


class Muon(MatrixOptimizer):
    """Steepest descent in the spectral norm for matrices W (m, n), AdamW for everything else.

        M <- momentum M + (1 - momentum) g
        U = momentum M + (1 - momentum) g   (nesterov; else U = M)
        O = msign(U)                        (Newton-Schulz, ns_steps)
        W <- (1 - lr weight_decay) W - lr c(m, n) O
        c = sqrt(max(1, m / n))             (scale "keller")
        c = 0.2 sqrt(max(m, n))             ("moonlight")

    A 3-D tensor is a stack of matrices, a convolution one matrix (out, in * kernel). An AdamW group
    uses this lr and weight_decay unless it has its own. With Keller's scale lr is an order of
    magnitude larger than AdamW's, so give that group its own lr.

    `equilibrate` scales rows or columns of U to equal norms before msign: MuonEq and Aurora,
    parts/equilibrate.py.

    Deviations: the momentum is a moving average (as in Keller's code and torch), not Moonlight's
    sum; the two differ by a positive factor, to which msign is invariant. `conv_scale="keller"`
    computes c from the sides (kh, kw) of a convolution's kernel, as Keller's code does.

    Cost: 1 gradient evaluation per step, 1 state tensor per matrix.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
        scale: Scale = "keller",
        conv_scale: ConvScale = "flattened",
        orthogonalizer: Orthogonalizer = "keller",
        equilibrate: Equilibrate = "none",
        ns_dtype: NsDtype = "auto",
    ) -> None:
        checks.non_negative(lr=lr, weight_decay=weight_decay)
        checks.fraction(momentum=momentum)
        checks.choice(Scale, scale=scale)
        checks.choice(ConvScale, conv_scale=conv_scale)
        checks.choice(Equilibrate, equilibrate=equilibrate)
        defaults = {
            "lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay,
            "scale": scale, "conv_scale": conv_scale, "equilibrate": equilibrate,
            **polar_options(ns_steps, orthogonalizer, ns_dtype),
        }
        super().__init__(params, defaults)

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        directions = momentum_direction(
            grads_of(params), self.buffers(params, "momentum_buffer"),
            group["momentum"], group["nesterov"])
        if group["equilibrate"] == "none":
            polar = msign(directions, group)
        else:  # MuonEq's eps is for a momentum that is a sum: rescale it for the average
            eps = EPS * (1 - group["momentum"]) ** 2
            polar = equilibrated_polar(directions, group["equilibrate"], eps,
                                       partial(msign, group=group))
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for p, o in zip(params, polar, strict=True):
            c = step_scale(p.shape, group["scale"], group["conv_scale"])
            p.add_(o.reshape(p.shape), alpha=-group["lr"] * c)
