"""ARS (dmf-archive/ARS, before ARS2-Neo): AdaRMSuon + SAM, "ARS (Old)" in the paper's tables.

According to the published logs it also produced the perplexity 80.94, which the paper gives for
ARS2-Neo.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from .ars2_neo import ARS2Neo
from .parts import checks
from .parts.adam import moments, update_moments, whitened
from .parts.base import grad_of, grads_of
from .parts.energy import EnergyScope
from .parts.polar import NsDtype, Orthogonalizer
from .parts.radius import RhoSchedule
from .parts.sharpness import ElementwiseScale

__all__ = ["ARS"]

SEARCH_SPACE = {
    "lr": (1e-4, 3e-2, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "rho": (0.01, 1.0, "log"),
    "k": [1, 3, 5],
}
COST = {"gradient_evaluations": 2, "state_tensors": 2}
TESTED_AGAINST = "plain numpy, ARS2-Neo"


class ARS(ARS2Neo):
    """ARS2-Neo's sync and lazy modes with the older second moment and optional |W| scaling.

    Differences from ARS2Neo:
    - in a lazy step v averages the raw gradient; only m averages the one with the shear force;
    - therefore this class also updates the AdamW track, since torch's AdamW uses one gradient for
      both moments; in sync steps the two agree;
    - bias corrections use the step count of the optimizer, not of the tensor.

    `adaptive` scales the perturbation by |W|. Steps 1, k + 1, 2k + 1 ... are sync steps. Released
    code: dmf-archive/ARS addb47c, optimizer/deprecated/ars.py.

    Cost: gradient evaluations per step 1 + 1/k; state tensors per parameter 2, 3 for k > 1.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter, and for a
    sync step without a closure or `first_step`.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        ns_steps: int = 5,
        rho: float = 0.05,
        k: int = 1,
        alpha: float = 0.7,
        adaptive: bool = True,
        energy_scope: EnergyScope = "matrix",
        orthogonalizer: Orthogonalizer = "keller",
        rho_schedule: RhoSchedule = "constant",
        rho_gap: float = 0.0,
        ns_dtype: NsDtype = "auto",
    ) -> None:
        checks.at_least(1, k=k)
        scale: ElementwiseScale = "abs" if adaptive else "none"
        super().__init__(params, lr, betas, eps, weight_decay, ns_steps, rho, k, alpha,
                         energy_scope=energy_scope, elementwise_scale=scale,
                         orthogonalizer=orthogonalizer, rho_schedule=rho_schedule,
                         rho_gap=rho_gap, ns_dtype=ns_dtype)
        self.raw_gradients: dict[Tensor, Tensor] = {}

    def update(self) -> None:
        """Update both tracks with the same moments; only matrices are orthogonalized."""
        for group in self.param_groups:
            params = self.with_gradient(group)
            if not params:
                continue
            exp_avgs, exp_avg_sqs, _ = moments(self.state, params)
            grads = grads_of(params)
            raw = [self.raw_gradients.get(p, g) for p, g in zip(params, grads, strict=True)]
            update_moments(exp_avgs, exp_avg_sqs, grads, raw, group["betas"])
            steps = [self.scalars["step"]] * len(params)
            u = whitened(exp_avgs, exp_avg_sqs, steps, group["betas"], group["eps"])
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            if group["track"] == "matrix":
                self.move(params, u, group)
            else:
                u = [direction.to(p.dtype) for direction, p in zip(u, params, strict=True)]
                torch._foreach_add_(params, u, alpha=-group["lr"])
        self.raw_gradients.clear()

    def inject_shear(self, alpha: float) -> None:
        """Inject the shear forces and store the raw gradients for v."""
        self.raw_gradients.update({p: grad_of(p) for p in self.sheared()})
        super().inject_shear(alpha)
