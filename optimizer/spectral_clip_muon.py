"""SpectralClipMuon (dmf-archive/ARS, optimizer summary 4.5): Muon that clips singular values.

The summary calls it QK-Clip, which is a different method. Spectral clipping of updates alone:
Jiang et al. 2026, arXiv 2603.14315.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from .muon import Scale, momentum_direction, step_scale
from .parts import checks
from .parts.base import grads_of
from .parts.matrix import MatrixOptimizer
from .parts.polar import as_matrices

__all__ = ["SpectralClipMuon"]

SEARCH_SPACE = {
    "lr": (1e-3, 1e-1, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "momentum": [0.9, 0.95, 0.98],
    "smin": (0.01, 1.0, "log"),
    "adamw.lr": (1e-4, 1e-2, "log"),
}
COST = {"gradient_evaluations": 1, "state_tensors": 1}
TESTED_AGAINST = "by hand, plain numpy"


class SpectralClipMuon(MatrixOptimizer):
    """Muon with singular values clipped to a range instead of set to 1.

        M <- momentum M + (1 - momentum) g;  U = Nesterov of M
        X = U / sigma_max(U) = P S Q^T
        W <- (1 - lr weight_decay) W - lr c(m, n) P clip(S, smin, smax) Q^T       (c as in Muon)

    smin = smax = 1 is Muon with exact msign; smin = 0, smax = 1 is momentum of spectral norm 1.
    Because of the division the bounds have no unit and the update is invariant to the gradient's
    scale (the summary clips the raw momentum). Zero singular values stay zero, as in msign.

    The clip is computed by SVD. It can also be written as a sum of three msigns, but Newton-Schulz
    is too inaccurate for that and the sum is ill-conditioned for singular values near a bound. An
    SVD is slow on a GPU.

    Cost: 1 gradient evaluation per step, 1 state tensor per matrix; an SVD of each matrix.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        smin: float = 0.1,
        smax: float = 1.0,
        scale: Scale = "keller",
    ) -> None:
        checks.non_negative(lr=lr, weight_decay=weight_decay, smin=smin, smax=smax)
        checks.fraction(momentum=momentum)
        checks.choice(Scale, scale=scale)
        if smin > smax:
            raise ValueError(f"smin must be <= smax, got {smin!r} > {smax!r}")
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay,
            "smin": smin, "smax": smax, "scale": scale})

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        directions = momentum_direction(
            grads_of(params), self.buffers(params, "momentum_buffer"),
            group["momentum"], group["nesterov"])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for p, u in zip(params, directions, strict=True):
            clipped = spectral_clip(as_matrices(u), group["smin"], group["smax"])
            c = step_scale(p.shape, group["scale"], "flattened")
            p.add_(clipped.reshape(p.shape), alpha=-group["lr"] * c)


def spectral_clip(matrices: Tensor, smin: float, smax: float) -> Tensor:
    """Return P clip(S / max(S), smin, smax) Q^T of each matrix P S Q^T of (stack, m, n).

    Singular values <= max(m, n) * eps * max(S) are set to zero.
    """
    p, s, qt = torch.linalg.svd(matrices, full_matrices=False)
    largest = s[..., :1]
    threshold = max(matrices.shape[-2:]) * torch.finfo(s.dtype).eps * largest
    clipped = (s / largest.clamp_min(torch.finfo(s.dtype).tiny)).clamp(smin, smax)
    return (p * (clipped * (s > threshold)).unsqueeze(-2)) @ qt
