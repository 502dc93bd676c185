"""TR-Muon (a proposal of dmf-archive/ARS, worked out here): RMSuon's direction in a trust region.

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
    """RMSuon with steps r times as long, r adapted to how well a model of the loss fits.

        s = -r lr E O / ||O||_F            (RMSuon's step for r = 1, for all matrices together)
        pred = -<g, s>                     (the reduction predicted by the gradient)
        "ratio"      ared = f(W) - f(W + s) on the same batch,  rho = avg(ared) / avg(pred)
        "curvature"  y = g(W + s) - g(W) on the same batch, rho = 1 - avg(<s, y>) / (2 avg(pred))
        "slope"      y = g(W + s) of the next batch - g(W), the same rho
        "gain"       r <- r exp(gain (rho - target))
        "line"       r <- 2 (1 - target) avg(pred / r) / avg(<s, y> / r^2), by at most a factor of 2

    On a quadratic all agree, and rho = 1/2 is the best length along s, rho = 1 far too short;
    "line" is the length at which rho is the target. r stays in radius_range, multiples of RMSuon's
    step. "ratio" and "curvature" take one more gradient evaluation on every interval-th step; the
    noise of the batch cancels in the difference. `accept` > 0 undoes such a step where ared <
    accept pred, and halves r. "slope" takes none: the gradient of the next step is the one at the
    end of this step, from a new batch (slightly off for decayed weights); one step in `interval`
    is used. "secant" takes none either: for each tensor kappa = <s, y> / <s, s> over the last
    `interval` steps (Barzilai-Borwein's long step; y a difference of averaged gradients), the step
    no longer than a / kappa with the slope a = <m_hat, O> / ||O||_F. "none" is RMSuon bit for bit.

    r is one number for all matrices; the AdamW track is RMSuon's. The schedule acts on lr, not r.

    Cost: 1 + 1 / interval gradient evaluations per step ("none", "slope", "secant": 1), 2 state
    tensors per matrix ("slope": 3, "secant": 4), and a copy of the matrices within a step that
    evaluates. Raises ValueError where an evaluation is due and step was given no closure.
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
        """E O / ||O||_F of each matrix."""
        return rmsuon_updates(self.state, params, group)
