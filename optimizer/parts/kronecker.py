"""Kronecker statistics of a gradient, L = sum of G G^T and R = sum of G^T G, and preconditioners.

Shampoo (Gupta et al. 2018, arXiv 1802.09568) uses inverse roots of L and R, SOAP (Vyas et al. 2024,
arXiv 2409.11321) their eigenvectors Q_L and Q_R. All functions take stacks of matrices
(stack, m, n); L is (stack, m, m) and R (stack, n, n). A side longer than `max_dim` has neither.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .adam import update_moments, whitened
from .base import grad_of
from .polar import as_matrices


def matrix_gradient(p: Tensor) -> Tensor:
    """Return the gradient of `p` as (stack, m, n), in float32 for half-precision parameters."""
    dtype = p.dtype if p.dtype == torch.float64 else torch.float32
    return as_matrices(grad_of(p)).to(dtype)


def sides(shape: torch.Size, max_dim: int) -> list[str]:
    """Return the preconditioned sides, "left" (m) and "right" (n): those of at most `max_dim`."""
    m, n = as_matrices(torch.empty(shape, device="meta")).shape[-2:]
    return [side for side, dim in (("left", m), ("right", n)) if dim <= max_dim]


def accumulate(entry: dict, side: str, grads: Tensor, beta: float) -> Tensor:
    """Update in place and return the statistic `side`: beta L + (1 - beta) G G^T, or L + G G^T for
    beta = 1. It starts as zeros. A product that overflows is skipped."""
    gram = grads @ grads.mT if side == "left" else grads.mT @ grads
    gram = gram.where(torch.isfinite(gram).all(dim=(-2, -1), keepdim=True), 0)
    if side not in entry:
        entry[side] = torch.zeros_like(gram)
    return entry[side].mul_(beta).add_(gram, alpha=1 - beta if beta < 1 else 1.0)


def eigh(statistics: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (stack, n), descending, and eigenvectors (stack, n, n) in columns.

    Computed in `dtype`, and in float64 where that fails: in float32 LAPACK may fail on a low-rank
    statistic, or return NaN without an error. A matrix that is not finite is replaced by zero,
    because LAPACK would raise for the whole stack. The momentum holds the same gradient, so the
    loss will show the divergence. Raises torch.linalg.LinAlgError if float64 fails too.
    """
    finite = torch.isfinite(statistics).all(dim=(-2, -1), keepdim=True)
    symmetric = statistics.where(finite, 0)
    try:
        values, vectors = torch.linalg.eigh(symmetric.to(dtype))
        if not torch.isfinite(vectors).all():
            raise torch.linalg.LinAlgError(
                f"eigh of finite statistics {tuple(statistics.shape)} gave NaN in {dtype}")
    except torch.linalg.LinAlgError:
        if dtype == torch.float64:
            raise
        return eigh(statistics)
    return values.flip(-1).to(statistics.dtype), vectors.flip(-1).to(statistics.dtype)


def inverse_root(statistics: Tensor, exponent: float, eps: float) -> Tensor:
    """Return (L + eps I)^(-exponent) of each matrix; directions with a zero eigenvalue are dropped.

    Eigenvalues below the rounding error of the largest, n * machine epsilon * largest, are noise
    and may be negative: they are raised to that value.
    """
    values, vectors = eigh(statistics)
    noise = values.shape[-1] * torch.finfo(values.dtype).eps * values[..., :1]
    values = torch.maximum(values, noise).clamp_min(0) + eps
    powers = torch.where(values > 0, values.pow(-exponent), torch.zeros_like(values))
    return (vectors * powers.unsqueeze(-2)) @ vectors.mT


def power_step(statistics: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bases after one power iteration, Q <- qr(L Q), and the new order of their columns.

    Columns are first sorted by their estimated eigenvalue diag(Q^T L Q), descending. Reorder state
    in this basis by `order` (stack, n). Cost: one product and one QR, several times cheaper than
    eigh; arXiv 2409.11321, Algorithm 4.
    """
    products = statistics @ bases
    order = (bases * products).sum(-2).argsort(dim=-1, descending=True, stable=True)
    return torch.linalg.qr(products.take_along_dim(order.unsqueeze(-2), -1)).Q, order


def rotated(matrices: Tensor, entry: dict) -> Tensor:
    """Return Q_L^T X Q_R of each matrix; a side without a basis in `entry` is not rotated."""
    if "left_basis" in entry:
        matrices = entry["left_basis"].mT @ matrices
    return matrices @ entry["right_basis"] if "right_basis" in entry else matrices


def rotated_back(matrices: Tensor, entry: dict) -> Tensor:
    """Return Q_L X Q_R^T of each matrix, the inverse of `rotated`."""
    if "left_basis" in entry:
        matrices = entry["left_basis"] @ matrices
    return matrices @ entry["right_basis"].mT if "right_basis" in entry else matrices


def update_bases(entry: dict, grads: Tensor, beta: float, max_dim: int, refresh: bool) -> None:
    """Update the statistics of a state entry. Compute its bases by eigh the first time, later by
    `power_step` if `refresh`; exp_avg_sq, stored in these bases, is reordered with them."""
    for side in sides(grads.shape, max_dim):
        statistic, key = accumulate(entry, side, grads, beta), f"{side}_basis"
        if key not in entry:
            entry[key] = eigh(statistic)[1]
        elif refresh:
            entry[key], order = power_step(statistic, entry[key])
            dim = -2 if side == "left" else -1
            order = order.unsqueeze(-1 if side == "left" else -2)
            entry["exp_avg_sq"] = entry["exp_avg_sq"].take_along_dim(order, dim)


def adam_in_eigenbasis(
    state: dict,
    params: Sequence[Tensor],
    betas: tuple[float, float],
    eps: float,
    shampoo_beta: float,
    frequency: int,
    max_dim: int,
    nesterov: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters that have bases, and Adam's direction of each, (stack, m, n), computed
    in those bases.

    A parameter's first step only creates its bases: in the eigenbasis of a single gradient that
    gradient is diagonal, and Adam would amplify the rounding errors beside the diagonal. Bases are
    refreshed every `frequency` steps, after the direction is computed.
    """
    grads = {p: matrix_gradient(p) for p in params}
    for p in params:
        if "step" not in state[p]:
            state[p].update(step=0, exp_avg=torch.zeros_like(grads[p]),
                            exp_avg_sq=torch.zeros_like(grads[p]))
    ready = [p for p in params
             if all(f"{side}_basis" in state[p] for side in sides(p.shape, max_dim))]
    directions = _adam_directions([state[p] for p in ready], [grads[p] for p in ready],
                                  betas, eps, nesterov) if ready else []
    for p in params:
        step = state[p]["step"]
        refresh = step > 0 and step % frequency == 0
        update_bases(state[p], grads[p], shampoo_beta, max_dim, refresh)
    return ready, directions


def _adam_directions(
    entries: list[dict],
    grads: list[Tensor],
    betas: tuple[float, float],
    eps: float,
    nesterov: bool,
) -> list[Tensor]:
    for entry in entries:
        entry["step"] += 1
    exp_avgs, exp_avg_sqs, steps = (
        [entry[key] for entry in entries] for key in ("exp_avg", "exp_avg_sq", "step"))
    rotated_grads = [rotated(g, entry) for g, entry in zip(grads, entries, strict=True)]
    update_moments(exp_avgs, exp_avg_sqs, grads, rotated_grads, betas)
    momenta = torch._foreach_lerp(grads, exp_avgs, betas[0]) if nesterov else exp_avgs
    momenta = [rotated(m, entry) for m, entry in zip(momenta, entries, strict=True)]
    white = whitened(momenta, exp_avg_sqs, steps, betas, eps)
    return [rotated_back(u, entry) for u, entry in zip(white, entries, strict=True)]
