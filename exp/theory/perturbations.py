"""Whitened gradients and shear forces at a point in training, outside the optimizer's step."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from exp.harness.build import Built
from optimizer.parts.base import grads_of
from optimizer.parts.sharpness import gradients_at, perturbation, shear_force

RHO = 0.1  # ARS2-Neo's default radius per tensor


def gradients(run: Built, batch: tuple[Tensor, ...], params: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of a batch, one tensor per parameter; p.grad becomes None."""
    run.objective.on(batch)()
    return pop_gradients(params)


def pop_gradients(params: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of the parameters and set p.grad to None."""
    gradients = grads_of(params)
    for p in params:
        p.grad = None
    return gradients


def whitened(optimizer: Optimizer, params: Sequence[Tensor],
             gradient: Sequence[Tensor]) -> list[Tensor]:
    """Return g / (sqrt(v_hat) + eps) per parameter, with v from the optimizer's state; g itself
    for a parameter without v."""
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
    """Return (g, f) of a batch as ARS2-Neo defines them, flattened over `params`.

    g is the gradient; f is the component of the gradient at W + rho q / ||q||, q = |W| g /
    sqrt(v_hat), that is orthogonal to g, per tensor. Weights and optimizer are not changed."""
    closure = run.objective.on(batch)
    closure()
    base = pop_gradients(params)
    with torch.no_grad():
        offsets = perturbation(params, whitened(run.optimizer, params, base), rho, "tensor", "abs")
        gradients_at(params, offsets, closure)
        shear = [shear_force(g2, g1) for g2, g1 in zip(pop_gradients(params), base, strict=True)]
    g, f = (torch.cat([t.flatten() for t in parts]) for parts in (base, shear))
    return g, f
