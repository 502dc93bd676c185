"""LowRankMuon (dmf-archive/ARS, optimizer summary 4.5): Muon in the k leading directions.

A randomized range finder with one power iteration (Halko et al. 2011, arXiv 0909.4061, Algorithm
4.4) computes the directions, starting from those of the previous step.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from .muon import Scale, momentum_direction, step_scale
from .parts import checks
from .parts.base import grads_of
from .parts.matrix import MatrixOptimizer
from .parts.polar import as_matrices

__all__ = ["LowRankMuon"]

SEARCH_SPACE = {
    "lr": (1e-3, 1e-1, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "momentum": [0.9, 0.95, 0.98],
    "k": [8, 32, 128],
    "adamw.lr": (1e-4, 1e-2, "log"),
}
COST = {"gradient_evaluations": 1, "state_tensors": 2}  # the second has k columns
TESTED_AGAINST = "plain numpy, exact SVD"

OVERSAMPLING = 8  # number of random columns beyond k: Halko et al., section 4.2


class LowRankMuon(MatrixOptimizer):
    """Muon with an orthogonal factor of rank k: the smaller singular directions are dropped.

        M <- momentum M + (1 - momentum) g;  U = Nesterov of M, transposed if m > n
        B = qr([P, U Omega]),  B = qr(U U^T B)        (P of the previous step, Omega Gaussian)
        P S Q^T = the k leading singular triples of U, computed from those of B^T U
        W <- (1 - lr weight_decay) W - lr c(m, n) P Q^T                    (c as in Muon)

    For k >= rank this is Muon with exact msign. The update has Frobenius norm lr c sqrt(k) instead
    of lr c sqrt(min(m, n)), so a small k needs a larger lr. Omega is the same in every step and
    run.

    Cost: 1 gradient evaluation per step, 1 state tensor per matrix and min(k, m, n) columns;
    products of m n (k + 8) where Newton-Schulz has m^2 n.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        k: int = 128,
        scale: Scale = "keller",
    ) -> None:
        checks.non_negative(lr=lr, weight_decay=weight_decay)
        checks.fraction(momentum=momentum)
        checks.at_least(1, k=k)
        checks.choice(Scale, scale=scale)
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay,
            "k": k, "scale": scale})

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        directions = momentum_direction(
            grads_of(params), self.buffers(params, "momentum_buffer"),
            group["momentum"], group["nesterov"])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for p, u in zip(params, directions, strict=True):
            matrices = as_matrices(u)
            tall = matrices.shape[-2] > matrices.shape[-1]
            wide = matrices.mT if tall else matrices
            polar, basis = low_rank_polar(wide, self.state[p].get("basis"), group["k"])
            self.state[p]["basis"] = basis
            update = polar.mT if tall else polar
            c = step_scale(p.shape, group["scale"], "flattened")
            p.add_(update.reshape(p.shape), alpha=-group["lr"] * c)


def low_rank_polar(matrices: Tensor, basis: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """Return P Q^T (stack, m, n) and P (stack, m, min(k, m)) of the k leading singular triples of
    each matrix (stack, m, n), m <= n.

    basis: an approximation of P to start from, or None. Singular values <= n * eps * max(S) are
    dropped from P Q^T as zero.
    """
    stack, m, n = matrices.shape
    norms = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
    x = matrices / norms.clamp_min(torch.finfo(norms.dtype).tiny)
    start = matrices.new_zeros(stack, m, 0) if basis is None else basis
    random_columns = gaussian(n, min(m, k + OVERSAMPLING) - start.shape[-1], x)
    q = torch.linalg.qr(torch.cat([start, x @ random_columns], -1)).Q
    q = torch.linalg.qr(x @ (x.mT @ q)).Q
    u, s, qt = torch.linalg.svd(q.mT @ x, full_matrices=False)
    p = q @ u[..., :k]
    keep = (s > n * torch.finfo(s.dtype).eps * s[..., :1])[..., :k]
    return (p * keep.unsqueeze(-2)) @ qt[..., :k, :], p


@torch.compiler.disable  # torch 2.11 warns that it cannot trace a generator
def gaussian(rows: int, columns: int, like: Tensor) -> Tensor:
    """Return a fixed standard normal matrix (rows, columns); global random state is not used."""
    generator = torch.Generator(like.device).manual_seed(0)
    return torch.randn(rows, columns, generator=generator, dtype=like.dtype, device=like.device)
