"""Curvature along a perturbation: the radius and the decay rates that ARS2C and AR-GSAM make of it.

A sync step knows two gradients, g1 at W and g2 at W + e. For each matrix, as released
(dmf-archive/ARS addb47c, ars2c.py and ars2c_argsam.py):

    C = (g2 - g1) / (rho |g_hat| + eps)        g_hat: g1 whitened as for the perturbation
    c = msign(C)                               five Newton-Schulz steps of C as (out, rest)

The decay rates that follow from c: parts/beta_rule.py. The radius of AR-GSAM, per matrix:

    nu <- adaptive_beta nu + (1 - adaptive_beta) ||C||     (at first ||C||)
    target = rho_min (1 + log(1 + ||C|| / (nu + eps))) (2 - s)
    rho <- rho + rate (target - rho),   both kept within rho_range

s = |<c, O>| / ||O|| of the last update that had a c, 0.5 before; rate = rho_rates[1] upwards and
rho_rates[0] downwards. Facts about it: at rest the factor is 1 + log 2, so that rho_min = 0.01
leads to a target of 0.017 to 0.034 and rho_max = 1 is never reached; v is zero at the first sync,
where g_hat = g1 / eps makes C vanish, and nu starts from that.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from . import checks
from .adam import moments
from .base import grad_of
from .beta_rule import BetaRule, alignment, decay_rates, scalar_alignment, whitened_by
from .matrix import MatrixOptimizer
from .polar import newton_schulz, product_dtype
from .sharpness import whitened_gradients

RhoRule = Literal["constant", "curvature"]

STEPS, FLOOR, EPS = 5, 1e-7, 1e-12  # of c: Keller's steps, added to the norm there; of cosines


class CurvatureAware(MatrixOptimizer):
    """A sharpness-aware rule for matrices that looks at C in its sync steps; with the default
    options it does nothing."""

    rho_schedule: str  # of `keep_sharpness`
    move: Callable[..., list[Tensor]]  # of AdaRMSuon

    def keep_curvature(
        self, beta_rule: str, beta1_range: tuple[float, float], beta2_range: tuple[float, float],
        rho_rule: str, rho_range: tuple[float, float], rho_rates: tuple[float, float],
    ) -> None:
        """Check and keep the options, after `keep_sharpness`. Raises ValueError for an invalid
        one."""
        checks.choice(BetaRule, beta_rule=beta_rule)
        checks.choice(RhoRule, rho_rule=rho_rule)
        checks.pair_of_fractions(beta1_range=beta1_range, beta2_range=beta2_range)
        checks.pair_of_fractions(rho_rates=rho_rates)
        if rho_rule == "curvature" and self.rho_schedule != "constant":
            raise ValueError(f'rho_rule = "curvature" goes with rho_schedule = "constant", got '
                             f"{self.rho_schedule!r}")
        checks.ordered(beta1_range=beta1_range, beta2_range=beta2_range, rho_range=rho_range)
        self.beta_rule, self.beta_ranges = beta_rule, (tuple(beta1_range), tuple(beta2_range))
        self.rho_rule, self.rho_range, self.rho_rates = rho_rule, tuple(rho_range), rho_rates

    @property
    def sees_curvature(self) -> bool:
        """Whether any option asks for C."""
        return self.beta_rule != "fixed" or self.rho_rule == "curvature"

    @property
    def diagnostics(self) -> dict[str, float]:
        """Means over the matrices: the alignment al and the radius, where they are kept."""
        kept = {name: [entry[key].mean() for entry in self.state.values() if key in entry]
                for name, key in (("alignment", "alignment"), ("matrix_rho", "rho"))}
        return {**super().diagnostics, **{name: float(torch.stack(values).mean())
                                          for name, values in kept.items() if values}}

    def radii(self, params: Sequence[Tensor], rho: float) -> list[float | Tensor]:
        """The radius of each parameter: `rho`, and of a matrix what AR-GSAM has made of it."""
        return [self.state.get(p, {}).get("rho", rho) for p in params]

    def see_curvature(self, params: Sequence[Tensor], base: Sequence[Tensor], rho: float,
                      decay: float, step: int) -> None:
        """Keep c of each matrix, and adapt its radius; the second gradients are in `p.grad`, the
        first ones are `base`."""
        first = dict(zip(params, base, strict=True))
        for group in self.param_groups:
            members = [p for p in group["params"] if p in first and p.grad is not None]
            if group["track"] != "matrix" or not members:
                continue
            hats = whitened_gradients(self.state, members, group, step, [first[p] for p in members])
            for p, hat, radius in zip(members, hats, self.radii(members, rho), strict=True):
                entry = self.state[p]
                curvature = (p.grad - first[p]) / (radius * hat.abs() + group["eps"])
                entry["curvature"] = direction(curvature, group["ns_dtype"])
                entry["curvature_norm"] = torch.linalg.vector_norm(curvature)
                if self.rho_rule == "curvature":
                    self._adapt(entry, rho, decay, group["eps"])

    def _adapt(self, entry: dict, rho: float, decay: float, eps: float) -> None:
        low, high = self.rho_range
        norm, old = entry["curvature_norm"], entry.get("rho", rho)
        entry["nu"] = decay * entry.get("nu", norm) + (1 - decay) * norm
        growth = 1 + torch.log(1 + norm / (entry["nu"] + eps))
        target = (low * growth * (2 - entry.get("cosine", 0.5))).clamp(low, high)
        down, up = self.rho_rates
        rate = down + (up - down) * (target > old).to(target.dtype)
        entry["rho"] = (old + rate * (target - old)).clamp(low, high)

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """The update with the decay rates of `beta_rule`."""
        if not self.sees_curvature:
            super().update_group(params, group)
            return
        directions, u = [], []
        for p, m, v, step in zip(params, *moments(self.state, params), strict=True):
            betas = decay_rates(self.state[p], self.beta_rule, self.beta_ranges, group["betas"])
            m_hat, white = whitened_by(m, v, grad_of(p).to(m.dtype), betas, step, group["eps"])
            directions.append(white if group["whiten"] else m_hat)
            u.append(white)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        polar = self.move(params, u, group, directions)
        for p, o in zip(params, polar, strict=True):
            if "curvature" in self.state[p]:
                self._compare(self.state[p], o.reshape(p.shape))

    def _compare(self, entry: dict, polar: Tensor) -> None:
        """Keep what the next steps need of c and the update O."""
        keeps = self.beta_rule == "element" and self.rho_rule == "constant"
        c = entry["curvature"] if keeps else entry.pop("curvature")
        cosine = (c * polar).sum().abs() / (torch.linalg.vector_norm(polar) + EPS)
        if self.rho_rule == "curvature":
            entry["cosine"] = cosine
        if self.beta_rule == "element":
            entry["alignment"] = alignment(c, polar)
        elif self.beta_rule == "scalar":
            entry["alignment"] = scalar_alignment(cosine, entry["curvature_norm"])


def direction(curvature: Tensor, ns_dtype: str) -> Tensor:
    """c, shaped as C. A C much smaller than FLOOR, as in the first sync, is not made orthogonal:
    Newton-Schulz starts at C / (||C|| + FLOOR)."""
    matrix = curvature.flatten(1).unsqueeze(0)
    tall = matrix.shape[1] > matrix.shape[2]
    c = newton_schulz(matrix.mT if tall else matrix, STEPS, "keller",
                      product_dtype(matrix, ns_dtype), FLOOR)
    return (c.mT if tall else c).reshape(curvature.shape).to(curvature.dtype)
