"""AdaRMSuon, "ARS base" (dmf-archive/ARS; paper 2.4): whiten, orthogonalize, restore the norm.

Without the restored norm ("energy") this is Muon^2, Liu et al. 2026, arXiv 2604.09967: whitening
with Adam's second moment before Newton-Schulz.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .parts import checks
from .parts.adam import moments, update_moments, whitened
from .parts.base import grads_of
from .parts.energy import EnergyNorm, EnergyScope, with_energy
from .parts.matrix import MatrixOptimizer
from .parts.polar import NsDtype, OptionalOrthogonalizer, as_matrices, msign, polar_options

__all__ = ["AdaRMSuon"]

SEARCH_SPACE = {
    "lr": (1e-4, 3e-2, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "betas": [[0.9, 0.95], [0.9, 0.98], [0.9, 0.999]],
}
COST = {"gradient_evaluations": 1, "state_tensors": 2}
TESTED_AGAINST = "by hand, plain numpy; ns_passes: upstream's class"


class AdaRMSuon(MatrixOptimizer):
    """The orthogonalized whitened momentum times its norm for matrices, AdamW for the rest.

        m <- beta1 m + (1 - beta1) g,   v <- beta2 v + (1 - beta2) g^2
        u = m_hat / (sqrt(v_hat) + eps),   E = ||u||_F
        O = msign(u)
        W <- (1 - lr weight_decay) W - lr E O

    Every singular value of the update is lr E: with exact msign ||dW||_F = lr E sqrt(rank), up to
    sqrt(min(m, n)) times the norm of Adam's step at the same lr. This is `energy_norm="literal"`,
    as in paper 2.4 and the released code (addb47c, optimizer/deprecated/ada_rmsuon.py); "frobenius"
    divides by ||O||_F (the norm of Adam's step), "rms" by sqrt(min(m, n)). Each matrix of a 3-D
    stack has its own energy E (`energy_scope="tensor"`: one for the whole stack, as released).

    Each part can be disabled for ablations. `energy_norm="none"`: the constant 0.2 sqrt(max(m, n))
    replaces E. `whiten=False`: O = msign(m_hat) with the same E; this is RMSuon for energy_norm
    "frobenius" and Muon without Nesterov for "none". `orthogonalizer="none"`: the update is u, as
    in AdamW, or m_hat if not whitened; energy_norm "frobenius" then scales m_hat to the norm E and
    does not change u. `ns_passes=2` orthogonalizes O once more: ARS2D, whose pass over the
    transpose is bitwise the same, since Newton-Schulz transposes tall matrices itself.

    Cost: 1 gradient evaluation per step, 2 state tensors per matrix.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter, and for
    `orthogonalizer="none"` with energy_norm "literal" or "rms", which assume an orthogonal O.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        ns_steps: int = 5,
        energy_norm: EnergyNorm = "literal",
        energy_scope: EnergyScope = "matrix",
        orthogonalizer: OptionalOrthogonalizer = "keller",
        whiten: bool = True,
        ns_passes: int = 1,
        ns_dtype: NsDtype = "auto",
    ) -> None:
        checks.non_negative(lr=lr, eps=eps, weight_decay=weight_decay)
        checks.pair_of_fractions(betas=betas)
        checks.iterations(ns_passes=ns_passes)
        checks.choice(EnergyNorm, energy_norm=energy_norm)
        checks.choice(EnergyScope, energy_scope=energy_scope)
        if orthogonalizer == "none" and energy_norm not in ("none", "frobenius"):
            raise ValueError('orthogonalizer="none" needs energy_norm "none" or "frobenius", '
                             f"got energy_norm={energy_norm!r}")
        defaults = {
            "lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay,
            "energy_norm": energy_norm, "energy_scope": energy_scope, "whiten": whiten,
            "ns_passes": ns_passes,
            **polar_options(ns_steps, orthogonalizer, ns_dtype, OptionalOrthogonalizer),
        }
        super().__init__(params, defaults)

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        exp_avgs, exp_avg_sqs, steps = moments(self.state, params)
        grads = grads_of(params)
        update_moments(exp_avgs, exp_avg_sqs, grads, grads, group["betas"])
        u = whitened(exp_avgs, exp_avg_sqs, steps, group["betas"], group["eps"])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        m_hat = None if group["whiten"] else torch._foreach_div(
            exp_avgs, [1 - group["betas"][0] ** step for step in steps])
        self.move(params, u, group, m_hat)

    @staticmethod
    def move(params: list[Tensor], u: Sequence[Tensor], group: dict,
             directions: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Update W <- W - lr E O in place; return the matrices O (stack, m, n).

        u: whitened momenta in the shapes of `params`; directions: tensors to orthogonalize instead
        of u."""
        polar = [as_matrices(direction) for direction in directions or u]
        for _ in range(group["ns_passes"] if group["orthogonalizer"] != "none" else 0):
            polar = msign(polar, group)
        updates = polar
        if not group["orthogonalizer"] == group["energy_norm"] == "none":
            updates = [with_energy(o, as_matrices(w), group["energy_norm"], group["energy_scope"])
                       for o, w in zip(polar, u, strict=True)]
        torch._foreach_add_(params, [update.reshape(p.shape) for p, update in zip(
            params, updates, strict=True)], alpha=-group["lr"])
        return polar
