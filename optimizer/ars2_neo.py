"""ARS2-Neo (dmf-archive/ARS; paper 3): AdaRMSuon with a sharpness-aware pass in sync or lazily."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from optimizer.ada_rmsuon import AdaRMSuon
from optimizer.parts import checks
from optimizer.parts.energy import EnergyNorm, EnergyScope
from optimizer.parts.first_order import FirstOrder
from optimizer.parts.polar import OptionalOrthogonalizer
from optimizer.parts.radius import START, RhoSchedule, check_radius, radius, see_gap
from optimizer.parts.sharpness import (
    EPS,
    ElementwiseScale,
    PerturbNorm,
    cosine,
    gradients_at,
    perturbation,
    shear_force,
    with_shear,
)
from optimizer.parts.stored import Storage, restored, stored

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

PARTS = {"value": "shear_force", "scale": "shear_scale"}  # of a stored tensor: its name in `state`


class ARS2Neo(AdaRMSuon):
    """AdaRMSuon whose moments see a sharpness-aware gradient; the mode follows from k.

    Base, k = 0: the gradient itself; this is AdaRMSuon.
    Sync, k = 1: every step is a sync step, its gradient g2 taken at the perturbed weights:
        q = |W| g1 / (sqrt(v_hat) + eps),   W' = W + rho q / ||q||,   g2 = gradient at W'
        (v_hat from the steps before this one, so the first perturbation is not whitened).
    Lazy, k > 1: steps 1, k + 1, 2k + 1 ... are sync steps and leave behind the shear force
        f = g2 - (<g2, g1> / ||g1||^2) g1; the others inject it: g <- g + alpha (||g||/||f||) f.
    AGA, adaptive_sync: as lazy, but a step syncs when the gradient turns against f,
        phi = cos(g, f) < -adaptive_lambda sqrt(var),   var an average of phi^2 with decay
        adaptive_beta (not updated on the first step after a sync, where phi is fresh),
        or k > 1 steps after the last sync; alpha_t = alpha (1 + max(0, phi))^adaptive_gamma.

    The shear force and its re-use are LookSAM's (arXiv 2203.02714), not GSAM's as the paper says.
    All parameters are perturbed, those on the AdamW track too; an entry that is 0 never is.
    `perturb_norm="global"` takes one norm over all tensors (the paper's notation, and SAM's);
    `elementwise_scale` "none" (the paper's text) or "asam" replaces |W| (the released code).
    `whiten`, `orthogonalizer` and `energy_norm` are AdaRMSuon's and concern the update alone: the
    perturbation is whitened in any case. `rho_schedule` "lr" and "gap" (towards the rise of the
    loss `rho_gap`): parts/radius.py.

    Cost: gradient evaluations a step 1 (Base), 2 (Sync), 1 + 1/k (Lazy), 1 + 1/effective_k (AGA);
    state tensors a parameter 2, and the shear force as a third in Lazy and AGA;
    `shear_storage` "bf16" or "8bit" (blocks) makes that half or a quarter of one.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        ns_steps: int = 5,
        rho: float = 0.1,
        k: int = 1,
        alpha: float = 0.1,
        adaptive_sync: bool = False,
        adaptive_beta: float = 0.99,
        adaptive_lambda: float = 2.0,
        adaptive_gamma: float = 2.0,
        energy_norm: EnergyNorm = "literal",
        energy_scope: EnergyScope = "matrix",
        perturb_norm: PerturbNorm = "tensor",
        elementwise_scale: ElementwiseScale = "abs",
        orthogonalizer: OptionalOrthogonalizer = "keller",
        shear_storage: Storage = "full",
        whiten: bool = True,
        rho_schedule: RhoSchedule = "constant",
        rho_gap: float = 0.0,
    ) -> None:
        check_radius(rho, rho_schedule, rho_gap)
        checks.non_negative(alpha=alpha, adaptive_lambda=adaptive_lambda,
                            adaptive_gamma=adaptive_gamma)
        checks.at_least(0, k=k)
        checks.fraction(adaptive_beta=adaptive_beta)
        checks.choice(PerturbNorm, perturb_norm=perturb_norm)
        checks.choice(ElementwiseScale, elementwise_scale=elementwise_scale)
        checks.choice(Storage, shear_storage=shear_storage)
        super().__init__(params, lr, betas, eps, weight_decay, ns_steps, energy_norm,
                         energy_scope, orthogonalizer, whiten)
        self.rho, self.k, self.alpha, self.adaptive_sync = rho, k, alpha, adaptive_sync
        self.adaptive_beta, self.adaptive_lambda = adaptive_beta, adaptive_lambda
        self.adaptive_gamma = adaptive_gamma
        self.rho_schedule, self.rho_gap = rho_schedule, rho_gap
        self.perturb_norm, self.elementwise_scale = perturb_norm, elementwise_scale
        self.shear_storage = shear_storage
        self.fresh_shear: dict[Tensor, Tensor] = {}
        self.scalars = {"step": 0, "sync_steps": 0, "last_sync_step": 0, "phi": 1.0,
                        "phi_var": 0.0, "threshold": 1.0, "alpha_t": alpha, **START}

    @property
    def diagnostics(self) -> dict[str, float]:
        """phi, its spread, threshold, alpha_t, effective_k (steps per sync step); none in Base."""
        s = self.scalars
        if self.k == 0 and not self.adaptive_sync:
            return {}
        effective_k = s["step"] / max(1, s["sync_steps"])
        rho = {} if self.rho_schedule == "constant" else {
            "rho": radius(self.rho, self.rho_schedule, self.param_groups[0], s)}
        return {**rho, "phi": s["phi"], "phi_std": s["phi_var"] ** 0.5, "threshold": s["threshold"],
                "alpha_t": s["alpha_t"], "effective_k": effective_k}

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One step; the closure is called once, or twice on a sync step. The first loss.

        Raises ValueError without a closure.
        """
        if closure is None:
            raise ValueError(f"{type(self).__name__} needs a closure: step(closure)")
        # Not super().step: once there is an AdaRMSuon, its step runs the hooks too.
        loss = FirstOrder.step(self, partial(self._gradient, closure))
        # Stored only now: torch's AdamW takes a tensor with any state for an initialized one.
        for p, shear in self.fresh_shear.items():
            for part, value in stored(shear, self.shear_storage).items():
                self.state[p][PARTS[part]] = value
        self.fresh_shear.clear()
        return loss

    def _gradient(self, closure: Callable[[], Tensor]) -> Tensor:
        """Leave in p.grad the gradient that the moments shall see."""
        self.scalars["step"] += 1
        loss = closure()
        with torch.no_grad():
            if self.k == 0 and not self.adaptive_sync:
                return loss
            if self._is_sync_step():
                self.scalars["sync_steps"] += 1
                self.scalars["last_sync_step"] = self.scalars["step"]
                perturbed_loss = self._take_adversarial_gradient(closure)
                if self.rho_schedule == "gap":
                    see_gap(self.scalars, loss, perturbed_loss, self.rho_gap)
            else:
                self._inject_shear()
        return loss

    def _is_sync_step(self) -> bool:
        if self.adaptive_sync:
            sheared = self._sheared()
            phi = cosine([p.grad for p in sheared], [self._shear(p) for p in sheared])
            return self._decide(phi)
        return self.k == 1 or self.scalars["step"] % self.k == 1

    def _decide(self, phi: float) -> bool:
        """AGA's rule, in the order of the released code: variance, threshold, decision, alpha."""
        s = self.scalars
        since_sync = s["step"] - s["last_sync_step"]
        if s["step"] == 1:
            s["phi_var"] = phi**2
        elif since_sync > 1:
            s["phi_var"] = self.adaptive_beta * s["phi_var"] + (1 - self.adaptive_beta) * phi**2
        s["phi"] = phi
        s["threshold"] = -self.adaptive_lambda * s["phi_var"] ** 0.5
        s["alpha_t"] = self.alpha * (1 + max(0.0, phi)) ** self.adaptive_gamma
        overdue = self.k > 1 and since_sync >= self.k
        return s["step"] == 1 or phi < s["threshold"] or overdue

    def _take_adversarial_gradient(self, closure: Callable[[], Tensor]) -> Tensor:
        groups = [(self.with_gradient(group), group) for group in self.param_groups]
        params = [p for members, _ in groups for p in members]
        base = [p.grad for p in params]
        rho = radius(self.rho, self.rho_schedule, self.param_groups[0], self.scalars)
        offsets = perturbation(params, [direction for members, group in groups for direction
                                        in self._whitened_gradients(members, group)],
                               rho, self.perturb_norm, self.elementwise_scale)
        perturbed_loss = gradients_at(params, offsets, closure)
        if self.k > 1 or self.adaptive_sync:
            self.fresh_shear.update(
                (p, shear_force(p.grad, g)) for p, g in zip(params, base, strict=True)
                if p.grad is not None)
        return perturbed_loss

    def _whitened_gradients(self, params: list[Tensor], group: dict) -> list[Tensor]:
        """g / (sqrt(v_hat) + eps), v as the steps before left it: zero at first."""
        # The global step corrects v, and EPS is added, as in the released code.
        correction = 1 - group["betas"][1] ** max(1, self.scalars["step"] - 1) + EPS
        directions = []
        for p in params:
            v = self.state.get(p, {}).get("exp_avg_sq")
            # Without v nothing is whitened: the perturbation's norm takes eps away, but not 0.
            denominator = group["eps"] or 1.0
            if v is not None:
                denominator = (v / correction).sqrt_().add_(group["eps"])
            directions.append((p.grad / denominator).to(p.dtype))
        return directions

    def _sheared(self) -> list[Tensor]:
        """The parameters that have both a gradient and a shear force."""
        return [p for group in self.param_groups for p in self.with_gradient(group)
                if "shear_force" in self.state.get(p, {})]

    def _shear(self, p: Tensor) -> Tensor:
        """The shear force of p as it was stored."""
        value, scale = (self.state[p].get(name) for name in PARTS.values())
        return restored(value, scale, p.grad)

    def _inject_shear(self) -> None:
        # A new tensor: the caller's gradient is not changed in place.
        for p in self._sheared():
            p.grad = with_shear(p.grad, self._shear(p), self.scalars["alpha_t"])
