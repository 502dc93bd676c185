"""NorMuon, Li et al. 2025, arXiv 2510.05491: Muon with normalized rows of the update."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from .muon import momentum_direction, step_scale
from .parts import checks
from .parts.base import grads_of
from .parts.matrix import MatrixOptimizer
from .parts.polar import NsDtype, Orthogonalizer, msign, polar_options

__all__ = ["NorMuon"]

SEARCH_SPACE = {
    "lr": (1e-3, 1e-1, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "momentum": [0.9, 0.95, 0.98],
    "adamw.lr": (1e-4, 1e-2, "log"),
}
COST = {"gradient_evaluations": 1, "state_tensors": 2}  # the second has one value per row
TESTED_AGAINST = "plain numpy, Muon"

EPS = 1e-10  # as in the authors' code
NormScale = Literal["official", "paper"]


class NorMuon(MatrixOptimizer):
    """Muon with each row (neuron) of the update divided by its running RMS, at the same norm.

        M <- momentum M + (1 - momentum) g;  U = Nesterov of M;  O = msign(U)
        v <- beta2 v + (1 - beta2) mean of O^2 over each row        (m, 1)
        O' = O / sqrt(v),   O'' = O' ||O||_F / ||O'||_F
        W <- (1 - lr weight_decay) W - lr sqrt(max(1, m/n)) O''

    scale="paper" uses the update lr 0.2 sqrt(m n) O' / ||O'||_F instead. Deviation: the rows of a
    convolution are those of the matrix (out, in * kernel); the authors' code (zichongli5/NorMuon
    d45c9a4) uses kernel rows.

    Cost: 1 gradient evaluation per step, 1 state tensor per matrix and one value per row.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 0.02,
        momentum: float = 0.95,
        beta2: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
        scale: NormScale = "official",
        orthogonalizer: Orthogonalizer = "keller",
        ns_dtype: NsDtype = "auto",
    ) -> None:
        checks.non_negative(lr=lr, weight_decay=weight_decay)
        checks.fraction(momentum=momentum, beta2=beta2)
        checks.choice(NormScale, scale=scale)
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "beta2": beta2, "nesterov": nesterov,
            "weight_decay": weight_decay, "scale": scale,
            **polar_options(ns_steps, orthogonalizer, ns_dtype)})

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        directions = momentum_direction(
            grads_of(params), self.buffers(params, "momentum_buffer"),
            group["momentum"], group["nesterov"])
        polar = msign(directions, group)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for p, o in zip(params, polar, strict=True):
            state = self.state[p]
            if "second_momentum_buffer" not in state:
                state["second_momentum_buffer"] = torch.zeros_like(o[..., :1])
            v = state["second_momentum_buffer"]
            v.lerp_(o.square().mean(-1, keepdim=True), 1 - group["beta2"])
            scaled = o / (v.sqrt() + EPS)
            length = torch.linalg.vector_norm(scaled, dim=(-2, -1), keepdim=True) + EPS
            if group["scale"] == "official":
                original = torch.linalg.vector_norm(o, dim=(-2, -1), keepdim=True)
                update = scaled * (original / length) * step_scale(p.shape, "keller", "flattened")
            else:
                update = scaled * (0.2 * (o.shape[-2] * o.shape[-1]) ** 0.5 / length)
            p.add_(update.reshape(p.shape), alpha=-group["lr"])
