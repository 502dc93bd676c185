"""Muon^2, Liu et al. 2026, arXiv 2604.09967: whiten by the second moment, then orthogonalize."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .muon import Scale, momentum_direction, step_scale
from .parts import checks
from .parts.base import grads_of
from .parts.matrix import MatrixOptimizer
from .parts.polar import NsDtype, Orthogonalizer, msign, polar_options

__all__ = ["MuonSquared"]

SEARCH_SPACE = {
    "lr": (1e-3, 1e-1, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "momentum": [0.9, 0.95, 0.98],
    "adamw.lr": (1e-4, 1e-2, "log"),
}
COST = {"gradient_evaluations": 1, "state_tensors": 2}
TESTED_AGAINST = "plain numpy, Muon"


class MuonSquared(MatrixOptimizer):
    """Orthogonalizes the whitened momentum: AdaRMSuon without bias correction and energy.

        M <- momentum M + (1 - momentum) g;  U = Nesterov of M
        v <- beta2 v + (1 - beta2) g^2
        O = msign(U / (sqrt(v) + eps))
        W <- (1 - lr weight_decay) W - lr c(m, n) O        (c as in Muon)

    Cost: 1 gradient evaluation per step, 2 state tensors per matrix.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 0.02,
        momentum: float = 0.95,
        beta2: float = 0.95,
        nesterov: bool = True,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
        scale: Scale = "keller",
        orthogonalizer: Orthogonalizer = "keller",
        ns_dtype: NsDtype = "auto",
    ) -> None:
        checks.non_negative(lr=lr, eps=eps, weight_decay=weight_decay)
        checks.fraction(momentum=momentum, beta2=beta2)
        checks.choice(Scale, scale=scale)
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "beta2": beta2, "nesterov": nesterov, "eps": eps,
            "weight_decay": weight_decay, "scale": scale,
            **polar_options(ns_steps, orthogonalizer, ns_dtype)})

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        grads = grads_of(params)
        directions = momentum_direction(grads, self.buffers(params, "momentum_buffer"),
                                        group["momentum"], group["nesterov"])
        variances = self.buffers(params, "exp_avg_sq")
        # Clamp squares that overflow to the largest number: with infinity, `lerp` would give NaN.
        squares = [g.to(v.dtype).square().clamp_max_(torch.finfo(v.dtype).max)
                   for g, v in zip(grads, variances, strict=True)]
        torch._foreach_lerp_(variances, squares, 1 - group["beta2"])
        denominators = torch._foreach_sqrt(variances)
        torch._foreach_add_(denominators, group["eps"])
        white = torch._foreach_div(directions, denominators)
        polar = msign(white, group)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for p, o in zip(params, polar, strict=True):
            c = step_scale(p.shape, group["scale"], "flattened")
            p.add_(o.reshape(p.shape), alpha=-group["lr"] * c)
