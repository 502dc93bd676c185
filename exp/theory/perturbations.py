"""Whitened gradients and shear forces at a point of training, outside the optimizer's step."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from exp.harness.build import Built
from optimizer.parts.base import grads_of
from optimizer.parts.sharpness import gradients_at, perturbation, shear_force

RHO = 0.1  # ARS2-Neo's default, of each tensor


def gradients(run: Built, batch: tuple[Tensor, ...], params: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of a batch; p.grad is left without it."""
    run.objective.on(batch)()
    return pop_gradients(params)


def pop_gradients(params: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of the parameters, whose p.grad becomes None."""
    gradients = grads_of(params)
    for p in params:
        p.grad = None
    return gradients


def whitened(optimizer: Optimizer, params: Sequence[Tensor],
             gradient: Sequence[Tensor]) -> list[Tensor]:
    """g / sqrt(v_hat), v as the optimizer keeps it; g itself where it keeps none."""
    result = []
    for p, g in zip(params, gradient, strict=True):
        state = optimizer.state.get(p, {})
        if "exp_avg_sq" not in state:
            result.append(g)
            continue
        group = next(group for group in optimizer.param_groups
                     if any(q is p for q in group["params"]))
        v = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
        result.append(g / (v.sqrt() + group["eps"]))
    return result


def gradient_and_shear(run: Built, batch: tuple[Tensor, ...], params: Sequence[Tensor],
                       rho: float = RHO) -> tuple[Tensor, Tensor]:
    """(g, f) of a batch as ARS2-Neo has them, flat over `params`: g the gradient, f the part of
    the gradient at W + rho q / ||q||, q = |W| g / sqrt(v_hat), that is orthogonal to g, both
    tensor by tensor. Weights and optimizer are left as they were."""
    closure = run.objective.on(batch)
    closure()
    base = pop_gradients(params)
    with torch.no_grad():
        offsets = perturbation(params, whitened(run.optimizer, params, base), rho, "tensor", "abs")
        gradients_at(params, offsets, closure)
        shear = [shear_force(g2, g1) for g2, g1 in zip(pop_gradients(params), base, strict=True)]
    g, f = (torch.cat([t.flatten() for t in parts]) for parts in (base, shear))
    return g, f
