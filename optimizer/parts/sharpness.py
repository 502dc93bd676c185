"""Sharpness-aware passes: perturbing and restoring weights, and what to do with both gradients."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from optimizer.parts.sharded import total, total_norm

PerturbNorm = Literal["tensor", "global"]
ElementwiseScale = Literal["abs", "none", "asam"]

EPS = 1e-12  # added to norms that may be zero, as in the released code


@contextmanager
def perturbed(params: Sequence[Tensor], offsets: list[Tensor]) -> Iterator[None]:
    """Inside, each parameter is moved by its offset; afterwards it is back bit for bit.

    Restored from a copy, also when the body raises: subtracting would leave rounding behind.
    `offsets` is emptied: what was added is not held while the body runs.
    """
    if not params:  # torch's foreach functions refuse an empty list
        yield
        return
    saved = [p.clone() for p in params]
    torch._foreach_add_(list(params), offsets)
    offsets.clear()
    try:
        yield
    finally:
        torch._foreach_copy_(list(params), saved)


def gradients_at(
    params: Sequence[Tensor], offsets: list[Tensor], closure: Callable[[], Tensor]
) -> Tensor:
    """Run `closure` at params + offsets; the gradients found there are left in `p.grad`. The loss.

    The gradients held before are let go first, not zeroed: the caller may still hold them. So are
    the offsets, as soon as they are added.
    """
    for p in params:
        p.grad = None
    with perturbed(params, offsets), torch.enable_grad():
        return closure()


def perturbation(
    params: Sequence[Tensor],
    directions: Sequence[Tensor],
    rho: float,
    norm: str,
    scale: str,
) -> list[Tensor]:
    """Offsets rho * q / ||q||, one a parameter, with q = the direction weighted by |W|.

    scale: "abs" q = |W| d (ARS2-Neo); "none" q = d; "asam" T^2 d / ||T d|| with T = |W|
    (ASAM, arXiv 2102.11600, with eta = 0). norm: taken over each "tensor" (ARS2-Neo) or over
    all of them, "global" (SAM, arXiv 2010.01412, eq. 2).
    """
    if not params:
        if norm == "global":  # the processes that have some wait for this one's share
            norm_of_all([])
        return []
    weighted = list(directions)
    if scale != "none":
        weighted = torch._foreach_mul(weighted, torch._foreach_abs(list(params)))
    if norm == "global":
        lengths = [norm_of_all(weighted)] * len(weighted)
    else:
        lengths = torch._foreach_norm(weighted)
    if scale == "asam":
        weighted = torch._foreach_mul(weighted, torch._foreach_abs(list(params)))
    return [w * (rho / (length + EPS)) for w, length in zip(weighted, lengths, strict=True)]


def norm_of_all(tensors: Sequence[Tensor]) -> Tensor:
    """The norm over all parameters, of one tensor each; 0 of none."""
    lengths = torch.stack(torch._foreach_norm(list(tensors))) if tensors else torch.zeros(0)
    return total_norm(torch.linalg.vector_norm(lengths))


def shear_force(adversarial: Tensor, base: Tensor) -> Tensor:
    """The part of the adversarial gradient orthogonal to the base gradient, of one tensor.

    LookSAM (Liu et al. 2022, arXiv 2203.02714): f = g2 - (<g2, g1> / ||g1||^2) g1.
    """
    ratio = (adversarial * base).sum() / ((base * base).sum() + EPS)
    return adversarial - ratio * base


def with_shear(grad: Tensor, shear: Tensor, alpha: float) -> Tensor:
    """How LookSAM (arXiv 2203.02714) uses a shear force again: g + alpha (||g|| / ||f||) f."""
    ratio = torch.linalg.vector_norm(grad) / (torch.linalg.vector_norm(shear) + EPS)
    return grad + shear * (alpha * ratio)


def cosine(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Cosine of two lists of tensors taken as two long vectors; one host synchronisation."""
    sums = torch.zeros(3)
    if left:
        products = torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)])
        norms = [torch.stack(torch._foreach_norm(list(x))) for x in (left, right)]
        sums = torch.stack([products.sum(), *(norm.square().sum() for norm in norms)])
    product, *squares = total(sums)
    return float(product / (torch.sqrt(squares[0] * squares[1]) + EPS))
