"""Functions for sharpness-aware gradients: perturbed weights, shear force, norms, cosines."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from .base import Closure, grads_of
from .distributed.collective import total, total_norm

PerturbNorm = Literal["tensor", "global"]
ElementwiseScale = Literal["abs", "none", "asam"]

EPS = 1e-12  # added to norms that may be zero, as in the released code


@torch.compiler.disable
def watch_gradients(groups: list[dict]) -> Callable[[], bool]:
    """Detect whether a closure adds to existing gradients instead of clearing them first.

    Call this before the closure and the returned function after it. It checks one parameter."""
    candidates = (p for group in groups for p in group["params"] if p.requires_grad
                  and p.grad is not None and not p.grad.is_sparse and p.numel())
    watched = next(candidates, None)
    if watched is None:
        return lambda: False
    before = watched.grad
    at_backward: list[bool] = []

    def record(_: Tensor) -> None:
        if not at_backward:  # the first backward pass only: a closure may accumulate micro-batches
            at_backward.append(watched.grad is not None and bool(watched.grad.any()))

    handle = watched.register_hook(record)

    def accumulated() -> bool:
        handle.remove()
        # Backward adds in place, or into a new tensor with create_graph; a closure that clears
        # the gradients replaces the tensor.
        same = watched.grad is before or (watched.grad is not None and watched.grad.requires_grad)
        return same and (at_backward[0] if at_backward else bool(before.any()))

    return torch.compiler.disable(accumulated)


def perturb(params: Sequence[Tensor], offsets: list[Tensor]) -> list[Tensor]:
    """Add each offset to its parameter in place; return copies of the parameters for `restore`.

    `offsets` is emptied to free its memory."""
    if not params:  # torch's foreach functions refuse an empty list
        return []
    saved = [p.clone() for p in params]
    torch._foreach_add_(list(params), offsets)
    offsets.clear()
    return saved


def restore(params: Sequence[Tensor], saved: list[Tensor]) -> None:
    """Copy the parameters saved by `perturb` back: subtraction would leave rounding errors."""
    if params:
        torch._foreach_copy_(list(params), saved)


@contextmanager
def perturbed(params: Sequence[Tensor], offsets: list[Tensor]) -> Iterator[None]:
    """Context manager that adds each offset to its parameter and restores the parameters on exit,
    also after an exception."""
    saved = perturb(params, offsets)
    try:
        yield
    finally:
        restore(params, saved)


def gradients_at(
    params: Sequence[Tensor], offsets: list[Tensor], closure: Closure
) -> Tensor:
    """Run `closure` at params + offsets, leave its gradients in `p.grad` and return its loss.

    Earlier gradient tensors are detached from `p.grad`, not zeroed, because the caller may still
    use them. `offsets` is emptied.
    """
    for p in params:
        p.grad = None
    with perturbed(params, offsets), torch.enable_grad():
        return closure()


def perturbation(
    params: Sequence[Tensor],
    directions: Sequence[Tensor],
    rho: float | Sequence[float | Tensor],
    norm: str,
    scale: str,
) -> list[Tensor]:
    """Return the offset rho * q / ||q|| of each parameter, in its shape, where q is the direction d
    weighted by |W|; rho is one radius or a list with one per parameter.

    scale: "abs" q = |W| d (ARS2-Neo); "none" q = d; "asam" T^2 d / ||T d|| with T = |W|
    (ASAM, arXiv 2102.11600, with eta = 0). norm: over each "tensor" (ARS2-Neo), or "global" over
    all of them (SAM, arXiv 2010.01412, eq. 2).
    """
    if not params:
        if norm == "global":  # other processes wait for this one in the collective sum
            norm_of_all([])
        return []
    weighted: list[Tensor] | tuple[Tensor, ...] = list(directions)
    if scale != "none":
        weighted = torch._foreach_mul(weighted, torch._foreach_abs(list(params)))
    radii: list[Any] = rho if isinstance(rho, list) else [rho] * len(weighted)
    lengths: list[Tensor] | tuple[Tensor, ...] = (
        [norm_of_all(weighted)] * len(weighted) if norm == "global"
        else torch._foreach_norm(weighted))
    lengths = torch._foreach_add(lengths, EPS)
    if scale == "asam":
        torch._foreach_mul_(weighted, torch._foreach_abs(list(params)))
    if any(torch.is_tensor(radius) for radius in radii):
        factors = [radius / length for radius, length in zip(radii, lengths, strict=True)]
    else:
        factors = list(torch._foreach_mul(torch._foreach_reciprocal(lengths), radii))
    if scale == "none":  # do not overwrite the caller's directions
        return list(torch._foreach_mul(weighted, factors))
    torch._foreach_mul_(weighted, factors)
    return list(weighted)


def whitened_gradients(state: dict, params: Sequence[Tensor], group: dict, step: int,
                       grads: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Return g / (sqrt(v_hat) + eps) of each parameter, with v of the previous steps, 0 at first.

    step: the optimizer's step count, used to bias-correct v (as in the released code of ARS2-Neo,
    which adds EPS). grads: the gradients g, by default `p.grad`.
    """
    correction = 1 - group["betas"][1] ** max(1, step - 1) + EPS
    grads = list(grads or grads_of(params))
    variances = [state.get(p, {}).get("exp_avg_sq") for p in params]
    known = [v for v in variances if v is not None]
    denominators: list[Tensor] = []
    if known:
        denominators += torch._foreach_div(known, correction)
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, group["eps"])
    if known and len(known) == len(grads):
        directions = list(torch._foreach_div(grads, denominators))
    else:
        # Without v the direction is g / eps; normalizing the perturbation cancels eps, except 0.
        rest = iter(denominators)
        directions = [g / ((group["eps"] or 1.0) if v is None else next(rest))
                      for g, v in zip(grads, variances, strict=True)]
    return [direction.to(p.dtype) for direction, p in zip(directions, params, strict=True)]


def norm_of_all(tensors: Sequence[Tensor]) -> Tensor:
    """Return the norm over all tensors, summed over all processes of a step of `Sharded`."""
    lengths = torch.stack(torch._foreach_norm(list(tensors))) if tensors else torch.zeros(0)
    return total_norm(torch.linalg.vector_norm(lengths))


def finite(ratio: Tensor) -> Tensor:
    """Return `ratio`, with NaN and infinity (sums that overflowed) replaced by 0."""
    return ratio.nan_to_num(0.0, 0.0, 0.0)


def shear_force(adversarial: Tensor, base: Tensor) -> Tensor:
    """Return the component of the adversarial gradient orthogonal to the base gradient, per tensor.

    LookSAM (Liu et al. 2022, arXiv 2203.02714): f = g2 - (<g2, g1> / ||g1||^2) g1.
    """
    ratio = finite((adversarial * base).sum() / ((base * base).sum() + EPS))
    return adversarial - ratio * base


def with_shear(grads: list[Tensor], shears: list[Tensor], alpha: float) -> list[Tensor]:
    """Return g + alpha (||g|| / ||f||) f per tensor: LookSAM's reuse of the shear force f
    (arXiv 2203.02714)."""
    if not grads:  # torch's foreach functions refuse an empty list
        return []
    lengths = torch._foreach_add(torch._foreach_norm(shears), EPS)
    ratios = torch._foreach_div(torch._foreach_norm(grads), lengths)
    injected = torch._foreach_mul(shears, [alpha * finite(ratio) for ratio in ratios])
    torch._foreach_add_(injected, grads)
    return list(injected)


def cosine(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Return the cosine of two lists of tensors, each concatenated to one vector.

    Cost: one host synchronization."""
    sums = torch.zeros(3)
    if left:
        products = torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)])
        norms = [torch.stack(torch._foreach_norm(list(x))) for x in (left, right)]
        sums = torch.stack([products.sum(), *(norm.square().sum() for norm in norms)])
    product, *squares = total(sums)
    return float(finite(product / (torch.sqrt(squares[0] * squares[1]) + EPS)))
