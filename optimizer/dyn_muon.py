"""DynMuon, arXiv 2605.17109: Muon with a scheduled power of the momentum's singular values."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from .muon import momentum_direction, step_scale
from .parts import checks
from .parts.base import grads_of
from .parts.matrix import MatrixOptimizer
from .parts.polar import NsDtype, as_matrices, orthogonalize

__all__ = ["DynMuon"]

SEARCH_SPACE = {
    "lr": (1e-3, 1e-1, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "power_end": [-0.25, 0.0, 0.25],
    "adamw.lr": (1e-4, 1e-2, "log"),
}
COST = {"gradient_evaluations": 1, "state_tensors": 1}
TESTED_AGAINST = "by hand, Muon"

Method = Literal["svd", "taylor"]


class DynMuon(MatrixOptimizer):
    """Updates by U S^p V^T, where Muon's momentum is X = U S V^T; Muon is p = 0.

        X as in Muon (nesterov),   Y = X / ||X||_F,   O = U S_Y^p V^T
        W <- (1 - lr weight_decay) W - lr sqrt(max(1, m / n)) O
        p = power_end + (power_start - power_end) / (1 + exp((t / total_steps - center) / width))

    p = 1 is the normalized momentum, 0 Muon, -1 the transposed pseudoinverse. At t = 0, p is below
    power_start: 0.1155 with the defaults, which are those of the modded-nanogpt record. Zero
    singular values are dropped.

    method "taylor" (as in the record): with A = Y Y^T, E = A - I and d = p / 2
        O = (I + d E + d (d - 1) / 2 E^2) msign(Y),
    five Newton-Schulz steps and two products. It is an expansion about the singular value 1 and is
    inaccurate for small ones: for diag(1, 0.01) at p = -0.25 it gives 1.2 instead of 3.2.

    Deviations: the authors keep the factor ||X||_F^p, which makes a step depend on the gradient's
    scale (their record first divides the gradient by the batch size); their repository
    (fzwark/DynMuon 89baa66) switches between raw momentum, Muon and the polynomial at p = 0.25 and
    0.

    Cost: 1 gradient evaluation per step, 1 state tensor per matrix; with "svd" an SVD per step.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.025,
        total_steps: int = 3000,
        power_start: float = 0.25,
        power_end: float = -0.25,
        center: float = 0.04,
        width: float = 0.04,
        method: Method = "taylor",
        ns_dtype: NsDtype = "auto",
    ) -> None:
        checks.non_negative(lr=lr, weight_decay=weight_decay, center=center)
        checks.fraction(momentum=momentum)
        checks.at_least(1, total_steps=total_steps)
        checks.choice(Method, method=method)
        checks.choice(NsDtype, ns_dtype=ns_dtype)
        if not width > 0:
            raise ValueError(f"width must be > 0, got {width!r}")
        for name, power in (("power_start", power_start), ("power_end", power_end)):
            if not -1 < power <= 1:
                raise ValueError(f"{name} must be in (-1, 1], got {power!r}")
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay,
            "total_steps": total_steps, "power_start": power_start, "power_end": power_end,
            "center": center, "width": width, "method": method,
            "ns_dtype": ns_dtype})

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        directions = momentum_direction(
            grads_of(params), self.buffers(params, "momentum_buffer"),
            group["momentum"], group["nesterov"])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for p, x in zip(params, directions, strict=True):
            step = self.state[p].get("step", 0)
            self.state[p]["step"] = step + 1
            update = powered(as_matrices(x), power_at(x.new_full((), step), group),
                             group["method"], group["ns_dtype"])
            c = step_scale(p.shape, "keller", "flattened")
            p.add_(update.reshape(p.shape), alpha=-group["lr"] * c)


def power_at(step: Tensor, group: dict) -> Tensor:
    """Return p of a step, counted from 0, as a 0-d tensor: for Python numbers torch.compile would
    build one graph per value."""
    progress = (step / group["total_steps"] - group["center"]) / group["width"]
    rise = group["power_start"] - group["power_end"]
    return group["power_end"] + rise * torch.sigmoid(-progress)


def powered(x: Tensor, power: float | Tensor, method: str, ns_dtype: str = "auto") -> Tensor:
    """Return U S^power V^T of X / ||X||_F for each matrix X of (stack, m, n); zero stays zero."""
    tiny = torch.finfo(x.dtype).tiny ** 0.5
    y = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_min(tiny)
    if method == "svd":
        u, s, vh = torch.linalg.svd(y, full_matrices=False, driver="gesvd" if x.is_cuda else None)
        nonzero = s > max(x.shape[-2:]) * torch.finfo(s.dtype).eps
        return (u * torch.where(nonzero, s, 1).pow(power).mul(nonzero).unsqueeze(-2)) @ vh
    tall = y.shape[-2] > y.shape[-1]
    y = y.mT if tall else y
    d = power / 2
    (polar,) = orthogonalize([y], ns_dtype=ns_dtype)
    error = y @ y.mT - torch.eye(y.shape[-2], dtype=y.dtype, device=y.device)
    once = error @ polar
    result = polar + d * once + d * (d - 1) / 2 * (error @ once)
    return result.mT if tall else result
