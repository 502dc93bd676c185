"""Equilibration: give rows or columns equal norms before a matrix is orthogonalized.

MuonEq (arXiv 2603.28254, muoneq.py): "row" X_i / ||X_i||, "col" likewise for columns, "rowcol" both
with both norms taken of the same X. msign is invariant to a scale of X, not to one per row.
Aurora (arXiv 2606.27715, aurora.py): scale the rows of a tall matrix (m > n) so that the rows of
its polar factor have equal norms, which takes 2 polar factors:

    D_i = 1 / ||X_i||,   O = msign(D X),   D_i <- D_i ((n / m) / ||O_i||^2)^(1/2),   O = msign(D X)

For a wide matrix (m < n) "aurora" scales the columns, as the authors' code does, and "aurora_tall"
nothing, as their README says. A square matrix is not scaled. The first polar factor of Aurora is
MuonEq's "row". The norms come out equal where msign is accurate: "svd", or "polar_express" with at
least 8 steps.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from .polar import as_matrices

Equilibrate = Literal["none", "row", "col", "rowcol", "aurora", "aurora_tall"]
Msign = Callable[[Sequence[Tensor]], list[Tensor]]

EPS, PASSES = 1e-7, 2  # Aurora's lower limit of norms, and its number of polar factors


def equilibrated_polar(tensors: Sequence[Tensor], how: str, eps: float, msign: Msign
                       ) -> list[Tensor]:
    """Return msign of each equilibrated tensor, one stack (stack, m, n) per tensor. eps is added to
    MuonEq's squared norms."""
    stacks = [as_matrices(tensor) for tensor in tensors]
    if how.startswith("aurora"):
        return _aurora(stacks, how == "aurora", msign)
    return msign([x * _scale(x, how, eps) for x in stacks])


def _scale(x: Tensor, how: str, eps: float) -> Tensor:
    dims = {"row": (-1,), "col": (-2,), "rowcol": (-1, -2)}[how]
    factors = [(x.square().sum(dim, keepdim=True) + eps).rsqrt() for dim in dims]
    return factors[0] * factors[1] if len(factors) == 2 else factors[0]


def _aurora(stacks: list[Tensor], wide: bool, msign: Msign) -> list[Tensor]:
    tall = [x.shape[-2] > x.shape[-1] for x in stacks]
    balanced = [t or (wide and x.shape[-2] < x.shape[-1])
                for x, t in zip(stacks, tall, strict=True)]
    upright = [x if t else x.mT for x, t in zip(stacks, tall, strict=True)]
    scales = [1 / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(EPS) if b
              else torch.ones_like(x[..., :1]) for x, b in zip(upright, balanced, strict=True)]
    for step in range(PASSES):
        polar = msign([d * x for d, x in zip(scales, upright, strict=True)])
        if step < PASSES - 1:
            scales = [d * ((o.shape[-1] / o.shape[-2])
                           / o.square().sum(-1, keepdim=True).clamp_min(EPS**2)).sqrt() if b else d
                      for d, o, b in zip(scales, polar, balanced, strict=True)]
    return [o if t else o.mT for o, t in zip(polar, tall, strict=True)]
