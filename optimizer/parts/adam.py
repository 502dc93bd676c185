"""Adam's moments, kept per tensor and updated for a whole list of tensors at once.

Kingma & Ba 2014, arXiv 1412.6980, Algorithm 1; eps placed as in torch.optim:
u = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps), t counted per tensor.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def moments(state: dict, params: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Return the lists (exp_avg, exp_avg_sq, step) and advance each step count by one.

    Moments start as zeros, shaped like the parameter, in float32 for half-precision parameters.
    """
    for p in params:
        entry = state[p]
        if "exp_avg" not in entry:
            dtype = p.dtype if p.dtype == torch.float64 else torch.float32
            entry["step"] = 0
            entry["exp_avg"] = torch.zeros_like(p, dtype=dtype)
            entry["exp_avg_sq"] = torch.zeros_like(p, dtype=dtype)
        entry["step"] += 1
    entries = [state[p] for p in params]
    exp_avgs, exp_avg_sqs, steps = (
        [entry[key] for entry in entries] for key in ("exp_avg", "exp_avg_sq", "step"))
    return exp_avgs, exp_avg_sqs, steps


def update_moments(
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    grads: list[Tensor],
    squared: list[Tensor],
    betas: tuple[float, float],
) -> None:
    """In place: m <- beta1 m + (1 - beta1) grads, v <- beta2 v + (1 - beta2) squared^2.

    `grads` and `squared` differ only for rules whose two moments average different gradients.
    """
    grads = [g.to(m.dtype) for g, m in zip(grads, exp_avgs, strict=True)]
    squared = [g.to(v.dtype) for g, v in zip(squared, exp_avg_sqs, strict=True)]
    torch._foreach_lerp_(exp_avgs, grads, 1 - betas[0])
    torch._foreach_mul_(exp_avg_sqs, betas[1])
    torch._foreach_addcmul_(exp_avg_sqs, squared, squared, 1 - betas[1])


def whitened(
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[int],
    betas: tuple[float, float],
    eps: float,
) -> Sequence[Tensor]:
    """Return Adam's direction u of each tensor: m_hat / (sqrt(v_hat) + eps), bias-corrected."""
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(denominators, [(1 - betas[1] ** t) ** 0.5 for t in steps])
    torch._foreach_add_(denominators, eps)
    directions = torch._foreach_div(exp_avgs, denominators)
    torch._foreach_div_(directions, [1 - betas[0] ** t for t in steps])
    return directions
