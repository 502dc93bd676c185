"""AdaMuon, Si et al. 2025, arXiv 2507.11005: variance adaptation after orthogonalizing a sign."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .muon import momentum_direction
from .parts import checks
from .parts.base import grads_of
from .parts.matrix import MatrixOptimizer
from .parts.polar import NsDtype, Orthogonalizer, as_matrices, msign, polar_options

__all__ = ["AdaMuon"]

SEARCH_SPACE = {
    "lr": (1e-4, 1e-1, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "momentum": [0.9, 0.95, 0.98],
    "adamw.lr": (1e-4, 1e-2, "log"),
}
COST = {"gradient_evaluations": 1, "state_tensors": 2}
TESTED_AGAINST = "by hand, plain numpy"


class AdaMuon(MatrixOptimizer):
    """Muon on the sign of the momentum, with a second moment per entry and an update RMS of 0.2.

        M <- momentum M + (1 - momentum) g;  U = Nesterov of M
        O = msign(sign(U)),   v <- momentum v + (1 - momentum) O^2
        O' = O / (sqrt(v) + eps),   O'' = 0.2 sqrt(m n) O' / ||O'||_F
        W <- (1 - lr weight_decay) W - lr O''

    v needs no bias correction: the normalization cancels the factor. Norms are per matrix (m, n); a
    convolution is one matrix (out, in * kernel). Authors' code: Chongjie-Si/AdaMuon 369f0b3.

    Cost: 1 gradient evaluation per step, 2 state tensors per matrix.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        ns_steps: int = 5,
        orthogonalizer: Orthogonalizer = "keller",
        ns_dtype: NsDtype = "auto",
    ) -> None:
        checks.non_negative(lr=lr, eps=eps, weight_decay=weight_decay)
        checks.fraction(momentum=momentum)
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "nesterov": nesterov, "eps": eps,
            "weight_decay": weight_decay, **polar_options(ns_steps, orthogonalizer, ns_dtype)})

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        directions = momentum_direction(
            grads_of(params), self.buffers(params, "momentum_buffer"),
            group["momentum"], group["nesterov"])
        signs = torch._foreach_sign(directions)
        polar = msign(signs, group)
        variances = self.buffers(params, "second_momentum_buffer")
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for p, o, v in zip(params, polar, variances, strict=True):
            reshaped = o.reshape(v.shape)  # as_matrices(v) may be a copy, so update v itself
            v.mul_(group["momentum"]).addcmul_(reshaped, reshaped, value=1 - group["momentum"])
            adapted = o / (as_matrices(v).sqrt() + group["eps"])
            length = torch.linalg.vector_norm(adapted, dim=(-2, -1), keepdim=True)
            target = 0.2 * (o.shape[-2] * o.shape[-1]) ** 0.5
            update = adapted * (target / (length + group["eps"]))
            p.add_(update.reshape(p.shape), alpha=-group["lr"])
