"""Curvature along a perturbation, from which ARS2C derives decay rates and AR-GSAM a radius.

A sync step has two gradients, g1 at W and g2 at W + e. For each matrix, as released
(dmf-archive/ARS addb47c, ars2c.py and ars2c_argsam.py):

    C = (g2 - g1) / (rho |g_hat| + eps)        g_hat: g1 whitened as for the perturbation
    c = msign(C)                               five Newton-Schulz steps of C as (out, rest)

The decay rates that follow from c: parts/beta_rule.py. The radius of AR-GSAM, per matrix:

    nu <- adaptive_beta nu + (1 - adaptive_beta) ||C||     (at first ||C||)
    target = rho_min (1 + log(1 + ||C|| / (nu + eps))) (2 - s)
    rho <- rho + rate (target - rho),   both kept within rho_range

Here s = |<c, O>| / ||O|| in the last update that had a c, O the orthogonalized update; 0.5 before
that. rate is rho_rates[1] if rho grows, else rho_rates[0].

Consequences: with ||C|| = nu the first factor is 1 + log 2, so rho_min = 0.01 gives a target of
0.017 to 0.034 and rho_max = 1 is never reached. At the first sync step v is zero: g_hat = g1 / eps
makes C almost zero, and nu starts there.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from . import checks
from .adam import moments
from .base import grad_of
from .beta_rule import BetaRule, alignment, decay_rates, warn_above_one, whitened_by
from .matrix import MatrixOptimizer
from .polar import newton_schulz, product_dtype
from .sharpness import whitened_gradients

RhoRule = Literal["constant", "curvature"]

STEPS, FLOOR = 5, 1e-7  # for c: Newton-Schulz steps, constant added to ||C||
EPS = 1e-12  # added to the norm of O in s


class CurvatureAware(MatrixOptimizer):
    """Mixin of a sharpness-aware matrix rule that measures C in its sync steps, see the module
    docstring; with the default options it changes nothing."""

    rho_schedule: str  # set by `keep_sharpness`
    move: Callable[..., list[Tensor]]  # method of AdaRMSuon

    def keep_curvature(
        self, beta_rule: str, beta1_range: tuple[float, float], beta2_range: tuple[float, float],
        rho_rule: str, rho_range: tuple[float, float], rho_rates: tuple[float, float],
    ) -> None:
        """Check and store the options; call it after `keep_sharpness`. Raises ValueError for an
        invalid value."""
        checks.choice(BetaRule, beta_rule=beta_rule)
        checks.choice(RhoRule, rho_rule=rho_rule)
        checks.pair_of_fractions(beta1_range=beta1_range, beta2_range=beta2_range)
        checks.pair_of_fractions(rho_rates=rho_rates)
        if rho_rule == "curvature" and self.rho_schedule != "constant":
            raise ValueError(f'rho_rule = "curvature" needs rho_schedule = "constant", got '
                             f"{self.rho_schedule!r}")
        checks.ordered(beta1_range=beta1_range, beta2_range=beta2_range, rho_range=rho_range)
        self.beta_rule, self.beta_ranges = beta_rule, (tuple(beta1_range), tuple(beta2_range))
        self.rho_rule, self.rho_range, self.rho_rates = rho_rule, tuple(rho_range), rho_rates
        self.new_alignments: list[Tensor] = []

    @property
    def sees_curvature(self) -> bool:
        """Whether any option needs C."""
        return self.beta_rule != "fixed" or self.rho_rule == "curvature"

    @property
    def diagnostics(self) -> dict[str, float]:
        """Means over the matrices of the alignment al and of the radius, where they exist."""
        stored = {name: [entry[key].mean() for entry in self.state.values() if key in entry]
                  for name, key in (("alignment", "alignment"), ("matrix_rho", "rho"))}
        return {**super().diagnostics, **{name: float(torch.stack(values).mean())
                                          for name, values in stored.items() if values}}

    def radii(self, params: Sequence[Tensor], rho: float) -> list[float | Tensor]:
        """Return the radius of each parameter: AR-GSAM's adapted one where it exists, else rho."""
        return [self.state.get(p, {}).get("rho", rho) for p in params]

    def see_curvature(self, params: Sequence[Tensor], base: Sequence[Tensor], rho: float,
                      decay: float, step: int) -> None:
        """Store c of each matrix and adapt its radius, with g1 = `base` and g2 in `p.grad`."""
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
        """Update in place as AdaRMSuon does, with the decay rates of `beta_rule`."""
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
        """Store s and al of c and the update O; drop c where no later step needs it."""
        keeps = self.beta_rule == "element" and self.rho_rule == "constant"
        c = entry["curvature"] if keeps else entry.pop("curvature")
        cosine = (c * polar).sum().abs() / (torch.linalg.vector_norm(polar) + EPS)
        if self.rho_rule == "curvature":
            entry["cosine"] = cosine
        if self.beta_rule == "element":
            entry["alignment"] = alignment(c, polar)
        elif self.beta_rule == "scalar":
            entry["alignment"] = cosine * torch.sigmoid(entry["curvature_norm"])
            self.new_alignments.append(entry["alignment"])

    def after_step(self) -> None:
        """Check the new alignments of beta_rule "scalar"."""
        super().after_step()
        if self.new_alignments:
            warn_above_one(self.new_alignments)
            self.new_alignments = []


def direction(curvature: Tensor, ns_dtype: str) -> Tensor:
    """Return c = msign(C) in the shape of C. Newton-Schulz starts at C / (||C|| + FLOOR), so a C
    much smaller than FLOOR, as in the first sync step, is not orthogonalized."""
    matrix = curvature.flatten(1).unsqueeze(0)
    tall = matrix.shape[1] > matrix.shape[2]
    c = newton_schulz(matrix.mT if tall else matrix, STEPS, "keller",
                      product_dtype(matrix, ns_dtype), FLOOR)
    return (c.mT if tall else c).reshape(curvature.shape).to(curvature.dtype)
