"""Newton-Muon, arXiv 2604.01472: Muon on the gradient times the inverse input covariance."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .muon import Scale, momentum_direction, step_scale
from .parts import checks
from .parts.kronecker import matrix_gradient
from .parts.layers import LayerOptimizer
from .parts.polar import NsDtype, Orthogonalizer, msign, polar_options

__all__ = ["NewtonMuon"]

SEARCH_SPACE = {
    "lr": (1e-3, 1e-1, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "damping": (0.02, 2.0, "log"),
    "adamw.lr": (1e-4, 1e-2, "log"),
}
# Momentum; K, the sum of z z^T and P, all (n, n).
COST = {"gradient_evaluations": 1, "state_tensors": 4}
TESTED_AGAINST = "plain numpy, Muon"

START, FLOOR = 1e-3, 1e-8  # initial K / identity; constant in gamma


class NewtonMuon(LayerOptimizer):
    """Muon on gradients (m, n) whitened by the inputs z (n) of each Linear and Conv2d:

        every refresh_interval steps:  K <- stat_decay K + (1 - stat_decay) mean of z z^T
                                       P = (K + gamma I)^-1,  gamma = damping tr(K) / n + 1e-8
        G <- G P (from the first refresh on), then Muon: average, Nesterov, msign, scale, decay

    K starts as I / 1000. The mean is over all rows (tokens, or positions of patches) since the last
    refresh. msign is invariant to the scale of P; after a refresh the momentum mixes gradients
    whitened by different P. If the Cholesky factorization fails, P is the identity.

    The matrix track has the weights of these layers (LayerOptimizer in parts/layers.py); biases and
    all other parameters take AdamW. Recorder in the same file defines which passes count.
    Deviation: the modded-nanogpt record splits one wide layer into four blocks and shares K between
    layers with the same input.

    Cost: 1 gradient evaluation per step; momentum and three matrices (n, n) per layer; a product
    z z^T per step, and every refresh_interval steps a Cholesky inverse.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter.
    """

    weights_only = True

    def __init__(
        self,
        params: Iterable,
        model: nn.Module,
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.025,
        ns_steps: int = 5,
        scale: Scale = "keller",
        orthogonalizer: Orthogonalizer = "keller",
        damping: float = 0.2,
        stat_decay: float = 0.95,
        refresh_interval: int = 64,
        ns_dtype: NsDtype = "auto",
    ) -> None:
        checks.non_negative(lr=lr, weight_decay=weight_decay, damping=damping)
        checks.fraction(momentum=momentum, stat_decay=stat_decay)
        checks.at_least(1, refresh_interval=refresh_interval)
        checks.choice(Scale, scale=scale)
        super().__init__(params, model, {
            "lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay,
            "scale": scale, **polar_options(ns_steps, orthogonalizer, ns_dtype),
            "damping": damping, "stat_decay": stat_decay, "refresh_interval": refresh_interval})

    @torch.compiler.disable  # a compiled graph would lose the recorded statistics
    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        grads = [self._whitened(p, group) for p in params]
        directions = momentum_direction(grads, self.buffers(params, "momentum_buffer"),
                                        group["momentum"], group["nesterov"])
        polar = msign(directions, group)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for p, o in zip(params, polar, strict=True):
            c = step_scale(p.shape, group["scale"], "flattened")
            p.add_(o.reshape(p.shape), alpha=-group["lr"] * c)

    def _whitened(self, p: Tensor, group: dict) -> Tensor:
        """Return G P in the shape of `p`; add the recorded inputs to K and refresh P if due."""
        state, recorder, grad = self.state[p], self.recorders[p], matrix_gradient(p)
        if "step" not in state:
            identity = torch.eye(grad.shape[-1], dtype=grad.dtype, device=grad.device)
            state.update(step=0, rows=0, covariance=START * identity,
                         inputs=torch.zeros_like(identity), inverse=identity)
        state["step"] += 1
        if recorder.rows:
            state["inputs"] += recorder.inputs.to(grad.dtype)
            state["rows"] += recorder.rows
            recorder.reset()
        if state["step"] % group["refresh_interval"] == 0:
            if state["rows"]:
                state["covariance"].lerp_(state["inputs"] / state["rows"],
                                          1 - group["stat_decay"])
                state["inputs"].zero_()
                state["rows"] = 0
            state["inverse"] = damped_inverse(state["covariance"], group["damping"])
        whitens = state["step"] >= group["refresh_interval"]  # `inverse` is the identity before
        return (grad @ state["inverse"] if whitens else grad).reshape(p.shape)


def damped_inverse(covariance: Tensor, damping: float) -> Tensor:
    """Return (K + gamma I)^-1, (n, n), or the identity if its Cholesky factorization fails."""
    n = len(covariance)
    identity = torch.eye(n, dtype=covariance.dtype, device=covariance.device)
    gamma = damping * covariance.trace() / n + FLOOR
    factor, failed = torch.linalg.cholesky_ex(covariance + gamma * identity)
    return torch.where(failed == 0, torch.cholesky_inverse(factor), identity)
