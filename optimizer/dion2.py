"""Dion2, Microsoft 2025, after Dion, arXiv 2504.05295: Muon on a fraction of the rows."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from .parts import checks
from .parts.base import grads_of
from .parts.matrix import MatrixOptimizer
from .parts.polar import NsDtype, Orthogonalizer, as_matrices, msign, polar_options

__all__ = ["Dion2"]

SEARCH_SPACE = {
    "lr": (1e-3, 1e-1, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "fraction": [0.25, 0.5, 1.0],
    "adamw.lr": (1e-4, 1e-2, "log"),
}
COST = {"gradient_evaluations": 1, "state_tensors": 1}
TESTED_AGAINST = "plain numpy"


class Dion2(MatrixOptimizer):
    """Updates only the rows with the largest momentum in each step (columns if m > n).

        M <- M + g;   chosen: the ceil(fraction m) rows of M with the largest L1 norm
        W <- (1 - lr weight_decay) W,   W_chosen <- W_chosen - lr sqrt(m / n) msign(M_chosen)
        M_chosen <- ef_decay M_chosen

    The other rows accumulate in the sum M and are used in later steps (error feedback). Of rows
    with equal norms the first is chosen. With a quarter of the rows, the square products of
    Newton-Schulz cost a sixteenth. Formulas as in the authors' code (microsoft/dion 00c2bc1).

    Cost: 1 gradient evaluation per step, 1 state tensor per matrix.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 0.01,
        fraction: float = 0.25,
        ef_decay: float = 0.95,
        weight_decay: float = 0.01,
        ns_steps: int = 5,
        orthogonalizer: Orthogonalizer = "polar_express",
        ns_dtype: NsDtype = "auto",
    ) -> None:
        checks.non_negative(lr=lr, weight_decay=weight_decay)
        checks.fraction(ef_decay=ef_decay)
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], got {fraction!r}")
        super().__init__(params, {
            "lr": lr, "fraction": fraction, "ef_decay": ef_decay, "weight_decay": weight_decay,
            **polar_options(ns_steps, orthogonalizer, ns_dtype)})

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        momenta = self.buffers(params, "momentum_buffer")
        grads = [g.to(m.dtype) for g, m in zip(grads_of(params), momenta, strict=True)]
        torch._foreach_add_(momenta, grads)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        chosen = [choose(as_matrices(m), group["fraction"]) for m in momenta]
        polar = msign([part for _, _, part in chosen], group)
        for p, momentum, (dim, index, part), o in zip(params, momenta, chosen, polar, strict=True):
            whole = as_matrices(momentum)
            decayed = whole.scatter(dim, index, group["ef_decay"] * part)
            momentum.copy_(decayed.reshape(momentum.shape))
            update = torch.zeros_like(whole).scatter(dim, index, o)
            scale = (whole.shape[-2] / whole.shape[-1]) ** 0.5
            p.add_(update.reshape(p.shape), alpha=-group["lr"] * scale)


def choose(matrices: Tensor, fraction: float) -> tuple[int, Tensor, Tensor]:
    """Choose the rows (columns if m > n) with the largest L1 norm of each matrix (stack, m, n).

    Return their dimension, -2 or -1, their index (expanded for scatter) and their entries, both
    (stack, count, n) or (stack, m, count)."""
    dim = -2 if matrices.shape[-2] <= matrices.shape[-1] else -1
    norms = matrices.abs().sum(-3 - dim, keepdim=True)
    count = math.ceil(fraction * matrices.shape[dim])
    order = norms.argsort(dim=dim, descending=True, stable=True).narrow(dim, 0, count)
    shape = list(matrices.shape)
    shape[dim] = count
    index = order.expand(shape)
    return dim, index, matrices.gather(dim, index)
