"""Muown, arXiv 2605.10797: Muon on the directions of a matrix's rows, Adam on their norms."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .muon import momentum_direction, step_scale
from .parts import checks
from .parts.kronecker import matrix_gradient
from .parts.matrix import MatrixOptimizer
from .parts.polar import NsDtype, Orthogonalizer, as_matrices, msign, polar_options

__all__ = ["Muown"]

SEARCH_SPACE = {
    "lr": (1e-4, 1e-2, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "momentum": [0.9, 0.95, 0.98],
}
COST = {"gradient_evaluations": 1, "state_tensors": 5}  # one (m, n), four of one number per row
TESTED_AGAINST = "the authors' class"

FLOOR = 1e-12  # lower limit of a row's norm


class Muown(MatrixOptimizer):
    """Weight normalization of the rows of a matrix (m, n): W_i = gain_i V_i / ||V_i||.

        U = W / gain,   V = v U                            v (m, 1): the norm of each row of V
        g_gain = row sums of G * U,   g_V = (gain / v) (G - U g_gain)
        X = Muon's momentum of g_V (nesterov)
        V <- V - lr 0.2 sqrt(max(m, n)) msign(X),   gain <- gain - lr Adam(g_gain)
        v <- ||V_i||,   W <- gain V / v - lr weight_decay W_old

    Initially gain = v = ||W_i||. v is never reset and grows, so the angle of a step shrinks. If a
    gain crosses zero, its row points the other way and the gain stays negative.

    Deviations from the authors' muown.py (kcc-lion/muown 3bd0c05): gains are recomputed from the
    weights in each step, with their current sign, so other changes of a weight (averages,
    projections, a checkpoint) take effect; a row of zeros has norm 1e-12 (theirs divides by 0); a
    tensor with 3 n rows is one matrix (theirs splits it into q, k, v: store them as a stack).
    Without Nesterov and decay this is the form of NVIDIA's Emerging-Optimizers with its extra
    factor at 0.2. If a row of the gradient is parallel to its weight, g_V is rounding noise, which
    msign amplifies.

    Cost: 1 gradient evaluation per step, 1 state tensor per matrix and 4 numbers per row.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 3e-4,
        momentum: float = 0.95,
        nesterov: bool = True,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
        orthogonalizer: Orthogonalizer = "keller",
        ns_dtype: NsDtype = "auto",
    ) -> None:
        checks.non_negative(lr=lr, eps=eps, weight_decay=weight_decay)
        checks.fraction(momentum=momentum)
        checks.pair_of_fractions(betas=betas)
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "nesterov": nesterov, "betas": tuple(betas), "eps": eps,
            "weight_decay": weight_decay, **polar_options(ns_steps, orthogonalizer, ns_dtype)})

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        parts = [split(self.state[p], p) for p in params]
        entries = [self.state[p] for p in params]
        directions = momentum_direction(
            [part[-1] for part in parts], [entry["momentum_buffer"] for entry in entries],
            group["momentum"], group["nesterov"])
        polar = msign(directions, group)
        for p, entry, o, (unit, gain, gain_grad, _) in zip(params, entries, polar, parts,
                                                           strict=True):
            rate = group["lr"] * step_scale(unit.shape, "moonlight", "flattened")
            before = unit * entry["row_norm"]
            rows = before - rate * o
            entry["gain"] = gain - group["lr"] * adam(entry, gain_grad, group)
            entry["row_norm"] = row_norms(rows)
            # Add the difference, so that a zero step leaves the weights bitwise unchanged.
            new, old = entry["gain"] * rows / entry["row_norm"], gain * before / row_norms(before)
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_((new - old).reshape(p.shape))


def row_norms(matrices: Tensor) -> Tensor:
    """Return the norm of each row, (stack, m, 1), at least FLOOR."""
    return torch.linalg.vector_norm(matrices, dim=-1, keepdim=True).clamp_min(FLOOR)


def split(entry: dict, p: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (U, gain, g_gain, g_V) of one parameter, matrices (stack, m, n) and row values
    (stack, m, 1); create its state in the first step."""
    grads = matrix_gradient(p)
    weights = as_matrices(p).to(grads.dtype)
    norms = row_norms(weights)
    if "step" not in entry:
        entry.update(step=0, gain=norms, row_norm=norms.clone(),
                     momentum_buffer=torch.zeros_like(grads),
                     gain_avg=torch.zeros_like(norms), gain_avg_sq=torch.zeros_like(norms))
    gain = norms.copysign(entry["gain"])
    unit = weights / gain
    gain_grad = (grads * unit).sum(-1, keepdim=True)
    return unit, gain, gain_grad, gain / entry["row_norm"] * (grads - unit * gain_grad)


def adam(entry: dict, grads: Tensor, group: dict) -> Tensor:
    """Update the moments of the gains and return Adam's direction, (stack, m, 1)."""
    beta1, beta2 = group["betas"]
    entry["step"] += 1
    entry["gain_avg"].lerp_(grads, 1 - beta1)
    entry["gain_avg_sq"].mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
    v_hat = entry["gain_avg_sq"] / (1 - beta2 ** entry["step"])
    return entry["gain_avg"] / (1 - beta1 ** entry["step"]) / (v_hat.sqrt() + group["eps"])
