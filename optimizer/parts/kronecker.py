"""Kronecker statistics of a gradient: L = sum of G G^T, R = sum of G^T G, and what is made of them.

Shampoo (Gupta et al. 2018, arXiv 1802.09568) takes inverse roots of L and R, SOAP (Vyas et al.
2024, arXiv 2409.11321) their eigenvectors Q_L and Q_R. All functions take stacks of matrices
(stack, m, n); L is (stack, m, m) and R (stack, n, n). A side longer than `max_dim` has neither.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .adam import update_moments, whitened
from .base import grad_of
from .polar import as_matrices


def matrix_gradient(p: Tensor) -> Tensor:
    """The gradient of `p` as a stack of matrices, in float32 if it is of half precision."""
    dtype = p.dtype if p.dtype == torch.float64 else torch.float32
    return as_matrices(grad_of(p)).to(dtype)


def sides(shape: torch.Size, max_dim: int) -> list[str]:
    """Which sides of a tensor's matrices are preconditioned: those of at most `max_dim` rows."""
    m, n = as_matrices(torch.empty(shape, device="meta")).shape[-2:]
    return [side for side, dim in (("left", m), ("right", n)) if dim <= max_dim]


def accumulate(entry: dict, side: str, grads: Tensor, beta: float) -> Tensor:
    """The statistic `side` of a state entry, advanced: beta L + (1 - beta) G G^T, the sum if
    beta = 1; created as zeros. A product that overflows is left out."""
    gram = grads @ grads.mT if side == "left" else grads.mT @ grads
    gram = gram.where(torch.isfinite(gram).all(dim=(-2, -1), keepdim=True), 0)
    if side not in entry:
        entry[side] = torch.zeros_like(gram)
    return entry[side].mul_(beta).add_(gram, alpha=1 - beta if beta < 1 else 1.0)


def eigh(statistics: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (stack, n), descending, and eigenvectors (stack, n, n) in columns.

    Computed in float64 whatever the precision given: in float32 LAPACK may fail on a statistic of
    low rank, and even return NaN without a word. A matrix that is not finite counts as zero:
    LAPACK would raise for the whole stack, and the gradient that spoilt it is in the momentum, so
    that the loss will tell. Raises torch.linalg.LinAlgError where float64 fails too.
    """
    finite = torch.isfinite(statistics).all(dim=(-2, -1), keepdim=True)
    values, vectors = torch.linalg.eigh(statistics.where(finite, 0).double())
    if not torch.isfinite(vectors).all():
        raise torch.linalg.LinAlgError(
            f"eigh of finite statistics {tuple(statistics.shape)} gave NaN, in float64 too")
    return values.flip(-1).to(statistics.dtype), vectors.flip(-1).to(statistics.dtype)


def inverse_root(statistics: Tensor, exponent: float, eps: float) -> Tensor:
    """(L + eps I)^(-exponent) of each matrix; directions in which L + eps I is zero are dropped.

    Eigenvalues below the rounding of the largest are noise, even negative: they count as that
    rounding, n * machine epsilon * largest.
    """
    values, vectors = eigh(statistics)
    noise = values.shape[-1] * torch.finfo(values.dtype).eps * values[..., :1]
    values = torch.maximum(values, noise).clamp_min(0) + eps
    powers = torch.where(values > 0, values.pow(-exponent), torch.zeros_like(values))
    return (vectors * powers.unsqueeze(-2)) @ vectors.mT


def power_step(statistics: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
    """The bases after one power iteration, Q <- qr(L Q), and the order given to their columns.

    Columns are first sorted by their estimated eigenvalue diag(Q^T L Q), descending: what is kept
    in this basis must be reordered by `order` (stack, n). Cost: one product and one QR, several
    times cheaper than eigh; arXiv 2409.11321, Algorithm 4.
    """
    products = statistics @ bases
    order = (bases * products).sum(-2).argsort(dim=-1, descending=True, stable=True)
    return torch.linalg.qr(products.take_along_dim(order.unsqueeze(-2), -1)).Q, order


def rotated(matrices: Tensor, entry: dict) -> Tensor:
    """Q_L^T X Q_R of each matrix; a side without a basis in the state entry stays as it is."""
    if "left_basis" in entry:
        matrices = entry["left_basis"].mT @ matrices
    return matrices @ entry["right_basis"] if "right_basis" in entry else matrices


def rotated_back(matrices: Tensor, entry: dict) -> Tensor:
    """Q_L X Q_R^T of each matrix: undoes `rotated`."""
    if "left_basis" in entry:
        matrices = entry["left_basis"] @ matrices
    return matrices @ entry["right_basis"].mT if "right_basis" in entry else matrices


def update_bases(entry: dict, grads: Tensor, beta: float, max_dim: int, refresh: bool) -> None:
    """Advance the statistics of a state entry; make its bases by eigh, or refresh them by a power
    step, in which exp_avg_sq, kept in these bases, is reordered with them."""
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
    """The parameters that have bases, and Adam's direction of each, taken in those bases.

    A parameter seen for the first time only gets its bases: in the eigenbasis of its own, single
    gradient that gradient is diagonal, and Adam would blow up the rounding beside the diagonal.
    Every `frequency` steps the bases are refreshed, after they were used.
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
    seen = [rotated(g, entry) for g, entry in zip(grads, entries, strict=True)]
    update_moments(exp_avgs, exp_avg_sqs, grads, seen, betas)
    momenta = torch._foreach_lerp(grads, exp_avgs, betas[0]) if nesterov else exp_avgs
    momenta = [rotated(m, entry) for m, entry in zip(momenta, entries, strict=True)]
    white = whitened(momenta, exp_avg_sqs, steps, betas, eps)
    return [rotated_back(u, entry) for u, entry in zip(white, entries, strict=True)]
