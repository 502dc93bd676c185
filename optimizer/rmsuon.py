"""RMSuon (dmf-archive/ARS): the orthogonalized momentum, scaled to the norm of Adam's step."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .parts import checks
from .parts.adam import moments, update_moments, whitened
from .parts.base import grads_of
from .parts.energy import EnergyScope, with_energy
from .parts.matrix import MatrixOptimizer
from .parts.polar import NsDtype, Orthogonalizer, as_matrices, msign, polar_options

__all__ = ["RMSuon"]

SEARCH_SPACE = {
    "lr": (1e-4, 3e-2, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "betas": [[0.9, 0.95], [0.9, 0.98], [0.9, 0.999]],
}
COST = {"gradient_evaluations": 1, "state_tensors": 2}
TESTED_AGAINST = "by hand, plain numpy"


class RMSuon(MatrixOptimizer):
    """Muon's direction with the norm of Adam's step for matrices, AdamW for everything else.

        m <- beta1 m + (1 - beta1) g,   v <- beta2 v + (1 - beta2) g^2
        E = || m_hat / (sqrt(v_hat) + eps) ||_F        (the energy: norm of Adam's direction)
        O = msign(m_hat)
        W <- (1 - lr weight_decay) W - lr E O / ||O||_F

    so ||dW||_F = lr E exactly. Each matrix of a 3-D stack has its own energy
    (`energy_scope="tensor"`: one for the whole stack, as in the released code:
    dmf-archive/ARS addb47c, optimizer/deprecated/rmsuon.py).

    Cost: 1 gradient evaluation per step, 2 state tensors per matrix.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        ns_steps: int = 5,
        energy_scope: EnergyScope = "matrix",
        orthogonalizer: Orthogonalizer = "keller",
        ns_dtype: NsDtype = "auto",
    ) -> None:
        checks.non_negative(lr=lr, eps=eps, weight_decay=weight_decay)
        checks.pair_of_fractions(betas=betas)
        checks.choice(EnergyScope, energy_scope=energy_scope)
        defaults = {
            "lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay,
            "energy_scope": energy_scope, **polar_options(ns_steps, orthogonalizer, ns_dtype),
        }
        super().__init__(params, defaults)

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        updates = rmsuon_updates(self.state, params, group)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, updates, alpha=-group["lr"])


def rmsuon_updates(state: dict, params: list[Tensor], group: dict) -> list[Tensor]:
    """Update the moments; return E O / ||O||_F of each parameter, in its shape."""
    exp_avgs, exp_avg_sqs, steps = moments(state, params)
    grads = grads_of(params)
    update_moments(exp_avgs, exp_avg_sqs, grads, grads, group["betas"])
    u = whitened(exp_avgs, exp_avg_sqs, steps, group["betas"], group["eps"])
    # m_hat and m differ by a positive factor, to which msign is invariant.
    polar = msign(exp_avgs, group)
    return [with_energy(o, as_matrices(direction), "frobenius", group["energy_scope"])
            .reshape(p.shape) for p, o, direction in zip(params, polar, u, strict=True)]
