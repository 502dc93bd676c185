"""ARS2-Neo (dmf-archive/ARS; paper 3): AdaRMSuon with sharpness-aware gradients, sync or lazy."""

from collections.abc import Iterable

from torch import Tensor

from .ada_rmsuon import AdaRMSuon
from .parts import checks
from .parts.adaptive_sync import decide_sync
from .parts.base import grads_of
from .parts.beta_rule import BetaRule
from .parts.curvature import CurvatureAware, RhoRule
from .parts.energy import EnergyNorm, EnergyScope
from .parts.polar import NsDtype, OptionalOrthogonalizer
from .parts.radius import RhoSchedule
from .parts.sharpness import ElementwiseScale, PerturbNorm, cosine, perturbation, whitened_gradients
from .parts.stored import Storage
from .parts.three_paths import SharpnessPaths, ThreePaths

__all__ = ["ARS2Neo"]

SEARCH_SPACE = {
    "lr": (1e-4, 3e-2, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "betas": [[0.9, 0.95], [0.9, 0.98], [0.9, 0.999]],
    "rho": (0.01, 1.0, "log"),
    "k": [0, 1, 5],
    "adaptive_sync": [False, True],
}
COST = {"gradient_evaluations": 2, "state_tensors": 2}
TESTED_AGAINST = "plain numpy, upstream's classes"


class ARS2Neo(ThreePaths, CurvatureAware, AdaRMSuon):
    """AdaRMSuon with a sharpness-aware gradient; k and adaptive_sync select the mode.

    Base, k = 0: the plain gradient; this is AdaRMSuon.
    Sync, k = 1: every step is a sync step, which uses the gradient g2 at the perturbed weights W':
        q = |W| g1 / (sqrt(v_hat) + eps),   W' = W + rho q / ||q||,   g2 = gradient at W'
        (v_hat of the previous steps, so the first perturbation is not whitened).
    Lazy, k > 1: steps 1, k + 1, 2k + 1 ... are sync steps, which store the shear force
        f = g2 - (<g2, g1> / ||g1||^2) g1; the others inject it: g <- g + alpha (||g||/||f||) f.
    AGA, adaptive_sync: lazy, but a step is a sync step if the gradient turns against f,
        phi = cos(g, f) < -adaptive_lambda sqrt(var),   var: a moving average of phi^2 with decay
        adaptive_beta (not updated in the first step after a sync step),
        or if k > 1 and the last was k steps ago; alpha_t = alpha (1 + max(0, phi))^adaptive_gamma.

    The shear force and its reuse are LookSAM's (arXiv 2203.02714), not GSAM's as the paper says.
    Norms and f are per tensor, cosines over all parameters. All parameters are perturbed, also on
    the AdamW track, except entries equal to 0.

    Options: `perturb_norm="global"` uses one norm over all tensors (the paper's notation, and
    SAM's). `elementwise_scale` "none" (the paper's text) or "asam" replaces |W| (the released
    code). `whiten`, `orthogonalizer` and `energy_norm` are AdaRMSuon's and change the update only:
    the perturbation is always whitened. `rho_schedule` "lr" and "gap" (target loss rise
    `rho_gap`): parts/radius.py. Variants of the released code (addb47c): `a_gsam` is its later name
    of adaptive_sync; `ns_passes=2` is ARS2D; `beta_rule` "element" is ARS2C, "scalar" its Scaler
    (parts/beta_rule.py); `rho_rule="curvature"` is AR-GSAM's radius per matrix
    (parts/curvature.py); these three adapt in sync steps. `sharpness_paths="agam"` is AGAM, with up
    to 3 gradient evaluations in a sync step (parts/three_paths.py).

    Cost: gradient evaluations per step 1 (Base), 2 (Sync), 1 + 1/k (Lazy), 1 + 1/effective_k
    (AGA); state tensors per parameter 2, and the shear force as a third in Lazy and AGA, in half or
    a quarter of the bytes with `shear_storage` "bf16" or "8bit" (blocks). beta_rule "element" adds
    two state tensors, or one with rho_rule="curvature".
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter, and for a
    sync step without a closure or `first_step`.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.01, ns_steps: int = 5,
        rho: float = 0.1, k: int = 1, alpha: float = 0.1, adaptive_sync: bool = False,
        adaptive_beta: float = 0.99, adaptive_lambda: float = 2.0, adaptive_gamma: float = 2.0,
        energy_norm: EnergyNorm = "literal", energy_scope: EnergyScope = "matrix",
        perturb_norm: PerturbNorm = "tensor", elementwise_scale: ElementwiseScale = "abs",
        orthogonalizer: OptionalOrthogonalizer = "keller", shear_storage: Storage = "full",
        whiten: bool = True, rho_schedule: RhoSchedule = "constant", rho_gap: float = 0.0,
        ns_passes: int = 1, a_gsam: bool = False, beta_rule: BetaRule = "fixed",
        beta1_range: tuple[float, float] = (0.5, 0.95),
        beta2_range: tuple[float, float] = (0.9, 0.9995),
        rho_rule: RhoRule = "constant", sharpness_paths: SharpnessPaths = "one",
        rho_range: tuple[float, float] = (0.01, 1.0), rho_rates: tuple[float, float] = (0.01, 0.1),
        ns_dtype: NsDtype = "auto",
    ) -> None:
        adaptive_sync = adaptive_sync or a_gsam
        checks.non_negative(alpha=alpha, adaptive_lambda=adaptive_lambda,
                            adaptive_gamma=adaptive_gamma)
        checks.at_least(0, k=k)
        checks.fraction(adaptive_beta=adaptive_beta)
        checks.choice(PerturbNorm, perturb_norm=perturb_norm)
        checks.choice(ElementwiseScale, elementwise_scale=elementwise_scale)
        super().__init__(params, lr, betas, eps, weight_decay, ns_steps, energy_norm,
                         energy_scope, orthogonalizer, whiten, ns_passes, ns_dtype)
        self.k, self.alpha, self.adaptive_sync = k, alpha, adaptive_sync
        self.injects = k > 1 or adaptive_sync
        self.state_keys = ("shear_force",) if self.injects else ()
        self.adaptive_beta, self.adaptive_lambda = adaptive_beta, adaptive_lambda
        self.adaptive_gamma = adaptive_gamma
        self.perturb_norm, self.elementwise_scale = perturb_norm, elementwise_scale
        self.keep_sharpness(rho, rho_schedule, rho_gap, shear_storage, step=0, sync_steps=0,
                            last_sync_step=0, phi=1.0, phi_var=0.0, threshold=1.0, alpha_t=alpha,
                            **self.path_numbers(sharpness_paths))
        self.keep_curvature(beta_rule, beta1_range, beta2_range, rho_rule, rho_range, rho_rates)

    @property
    def diagnostics(self) -> dict[str, float]:
        """phi, sqrt(var), threshold, alpha_t, effective_k (steps per sync step); empty in Base."""
        s = self.scalars
        if self.k == 0 and not self.adaptive_sync:
            return {}
        effective_k = s["step"] / max(1, s["sync_steps"])
        return {**super().diagnostics, "phi": s["phi"], "phi_std": s["phi_var"] ** 0.5,
                "threshold": s["threshold"], "alpha_t": s["alpha_t"], "effective_k": effective_k}

    def ascend(self, params: list[Tensor]) -> tuple[list[Tensor] | None, list[Tensor]]:
        """Return the offsets of a sync step; in other steps inject the shear force."""
        self.scalars["step"] += 1
        if self.k == 0 and not self.adaptive_sync:
            return None, []
        if not self._is_sync_step():
            alpha_t, alpha = self.scalars["alpha_t"], self.scalars.get("last_alpha", 0.0)
            self.inject_shear(alpha_t * (2 - alpha) if alpha > 0 else alpha_t)
            return None, []
        self.scalars["sync_steps"] += 1
        self.scalars["last_sync_step"] = self.scalars["step"]
        directions = [direction for group in self.param_groups
                      for direction in whitened_gradients(self.state, self.with_gradient(group),
                                                          group, self.scalars["step"])]
        offsets = perturbation(params, directions, self.radii(params, self.radius),
                               self.perturb_norm, self.elementwise_scale)
        needs_base = self.injects or self.sees_curvature or self.paths != "one"
        return offsets, grads_of(params) if needs_base else []

    def combine(self, params: list[Tensor], base: list[Tensor]) -> None:
        """Store the shear force and the curvature where needed; the second gradient stays."""
        if self.injects:
            self.keep_shear(params, base)
        if self.sees_curvature:
            self.see_curvature(params, base, self.radius, self.adaptive_beta, self.scalars["step"])

    def _is_sync_step(self) -> bool:
        if not self.adaptive_sync:
            return self.k == 1 or self.scalars["step"] % self.k == 1
        sheared = self.sheared()
        phi = cosine(grads_of(sheared), [self.shear(p) for p in sheared])
        return decide_sync(self.scalars, phi, self.k, self.alpha, self.adaptive_beta,
                           self.adaptive_lambda, self.adaptive_gamma)
