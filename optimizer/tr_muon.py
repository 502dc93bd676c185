"""TR-Muon (proposed in dmf-archive/ARS, designed here): RMSuon's direction with a trust region.

Sources of the rules for the radius: parts/trust_region.py.
"""

from collections.abc import Iterable

from torch import Tensor

from .parts import checks
from .parts.energy import EnergyScope
from .parts.polar import NsDtype, Orthogonalizer, polar_options
from .parts.trust_region import Control, Rule, TrustRegion
from .rmsuon import rmsuon_updates

__all__ = ["TRMuon"]

SEARCH_SPACE = {
    "lr": (1e-4, 3e-2, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "betas": [[0.9, 0.95], [0.9, 0.98], [0.9, 0.999]],
    "target": (0.5, 0.95, "linear"),
    "interval": [1, 4, 10],
}
COST = {"gradient_evaluations": 1.25, "state_tensors": 2}
TESTED_AGAINST = "by hand, plain numpy"


class TRMuon(TrustRegion):
    """RMSuon with steps scaled by r, adapted to the agreement of actual and predicted reduction.

        s = -r lr E O / ||O||_F            (RMSuon's step for r = 1, of all matrices together)
        pred = -<g, s>                     (the reduction predicted by the gradient)
        "ratio"      ared = f(W) - f(W + s) on the same batch,  rho = avg(ared) / avg(pred)
        "curvature"  y = g(W + s) - g(W) on the same batch, rho = 1 - avg(<s, y>) / (2 avg(pred))
        "slope"      y = g(W + s) of the next batch - g(W), the same rho
        "gain"       r <- r exp(gain (rho - target))
        "line"       r <- 2 (1 - target) avg(pred / r) / avg(<s, y> / r^2), by at most a factor of 2

    `rule` is one of "ratio", "curvature", "slope", "secant" and "none"; `control` is "gain" or
    "line". On a quadratic the first three rules agree: rho = 1/2 is the optimal length along s and
    rho near 1 a step that is much too short. "line" sets the length at which rho is the target. r
    is clamped to radius_range, in multiples of RMSuon's step; it is one number for all matrices.

    "ratio" and "curvature" need one more gradient evaluation in every interval-th step, on the same
    batch, so that its noise cancels in the difference. `accept` > 0 undoes such a step if ared <
    accept pred, and halves r. "slope" needs none: it uses the gradient of the next step, at the end
    of this step but on a new batch (weight decay is neglected), once in `interval` steps. "secant"
    needs none either: per tensor, kappa = <s, y> / <s, s> over the last `interval` steps
    (Barzilai-Borwein's long step; y is a difference of averaged gradients) limits the step length
    to a / kappa, with the slope a = <m_hat, O> / ||O||_F. "none" is RMSuon bit for bit.

    The AdamW track is as in RMSuon. Schedules change lr, not r.

    Cost: 1 + 1 / interval gradient evaluations per step ("none", "slope", "secant": 1), 2 state
    tensors per matrix ("slope": 3, "secant": 4), and a copy of the matrices in a step with an
    additional evaluation. Raises ValueError for an invalid argument, and if an evaluation is due in
    a step without a closure.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        ns_steps: int = 5,
        rule: Rule = "curvature",
        interval: int = 4,
        gain: float = 0.1,
        target: float = 0.75,
        accept: float = 0.0,
        control: Control = "line",
        radius_range: tuple[float, float] = (0.01, 100.0),
        energy_scope: EnergyScope = "matrix",
        orthogonalizer: Orthogonalizer = "keller",
        ns_dtype: NsDtype = "auto",
    ) -> None:
        checks.non_negative(lr=lr, eps=eps, weight_decay=weight_decay)
        checks.pair_of_fractions(betas=betas)
        checks.choice(EnergyScope, energy_scope=energy_scope)
        super().__init__(params, {
            "lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay,
            "energy_scope": energy_scope, **polar_options(ns_steps, orthogonalizer, ns_dtype)},
            rule, interval, gain, target, accept, control, radius_range)

    def directions(self, params: list[Tensor], group: dict) -> list[Tensor]:
        """Return E O / ||O||_F of each matrix, in its shape."""
        return rmsuon_updates(self.state, params, group)
