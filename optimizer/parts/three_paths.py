"""AGAM (dmf-archive/ARS addb47c, ars2_agam.py): sync steps that choose between three gradients.

A sync step has g1 at W and g2 at the perturbed weights. Let d = g2 - g1 per tensor, and phi the
cosine that adaptive_sync compared with its threshold (1 without adaptive_sync):

    SAM     phi > theta_1                  g2
    middle  else, if alpha > theta_2       g2, after a third gradient g3 at W + rho_small d / ||d||
    GAM     else                           (g1 - <g1, d> d / ||d||^2) + 0.2 d + 0.1 (g3 - g2)

    alpha = min(1, sum |<d, g3 - g2>| / sum ||d|| ||g3 - g2||),   over tensors

theta_1 is the upper tercile of the last 1000 values of phi, theta_2 of alpha; each is at least
1.19e-7 sqrt(number of weights), and infinite until both windows hold 50 values. The shear force is
that of g2; steps without a sync inject it with the factor alpha_t (2 - alpha). As released,
rho_small is 0.01 for every rho. A step that syncs because phi is below its threshold, which is
never positive, cannot take the SAM path.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from . import checks
from .base import Closure, grads_of
from .distributed.collective import total
from .sharpness import EPS, finite, gradients_at
from .sharpness_aware import SharpnessAware

SharpnessPaths = Literal["one", "agam"]

RHO_SMALL, BETA1, BETA2 = 0.01, 0.2, 0.1
WINDOW, READY, SHARE, LEAST = 1000, 50, 2 / 3, 1.19e-7
NUMBERS = {"window_1": (), "window_2": (), "last_alpha": 0.0,
           "sam_paths": 0, "middle_paths": 0, "gam_paths": 0}


class ThreePaths(SharpnessAware):
    """A sharpness-aware rule whose sync steps may take a third gradient, with `paths` "agam"; with
    "one" it is unchanged."""

    paths: str = "one"
    adaptive_sync: bool

    def path_numbers(self, paths: str) -> dict:
        """Check and store the option; return the scalars that `keep_sharpness` must store for it.

        Raises ValueError for an invalid value."""
        checks.choice(SharpnessPaths, sharpness_paths=paths)
        self.paths = paths
        return dict(NUMBERS) if paths == "agam" else {}

    def first_step(self, zero_grad: bool = False) -> bool:
        """Do `first_step` of SharpnessAware. Raises ValueError for `paths` "agam", which may need a
        third gradient."""
        if self.paths == "agam":
            raise ValueError('sharpness_paths = "agam" needs a third gradient: use step(closure)')
        return super().first_step(zero_grad)

    def look_again(self, params: list[Tensor], base: list[Tensor], closure: Closure) -> None:
        """Replace the second gradients in `p.grad` by those of the chosen path."""
        if self.paths == "one":
            return
        s = self.scalars
        thresholds = self._thresholds()
        phi = s["phi"] if self.adaptive_sync else 1.0
        s["window_1"] = (*s["window_1"], phi)[-WINDOW:]
        if phi > thresholds[0]:
            s["sam_paths"] += 1
            return
        idle = [p for p in params if p.grad is None]  # no gradient in the second pass: no update
        base = [g for p, g in zip(params, base, strict=True) if p.grad is not None]
        params = [p for p in params if p.grad is not None]
        second = grads_of(params)
        d = [g2 - g1 for g2, g1 in zip(second, base, strict=True)]
        gradients_at(params, [RHO_SMALL * x / (torch.linalg.vector_norm(x) + EPS) for x in d],
                     closure)
        d2 = [(g2 if p.grad is None else p.grad) - g2 for p, g2 in zip(params, second, strict=True)]
        for p in idle:
            p.grad = None
        alpha = alignment(d, d2)
        s["window_2"], s["last_alpha"] = (*s["window_2"], alpha)[-WINDOW:], alpha
        if alpha > thresholds[1]:
            s["middle_paths"] += 1
            final = second
        else:
            s["gam_paths"] += 1
            final = [g1 - finite((g1 * x).sum() / ((x * x).sum() + EPS)) * x + BETA1 * x + BETA2 * y
                     for g1, x, y in zip(base, d, d2, strict=True)]
        for p, g in zip(params, final, strict=True):
            p.grad = g

    def _thresholds(self) -> tuple[float, float]:
        windows = self.scalars["window_1"], self.scalars["window_2"]
        if min(map(len, windows)) < READY:
            return math.inf, math.inf
        least = LEAST * sum(p.numel() for g in self.param_groups for p in g["params"]) ** 0.5
        return tuple(max(sorted(window)[int(len(window) * SHARE)], least) for window in windows)


def alignment(d: Sequence[Tensor], d2: Sequence[Tensor]) -> float:
    """Return alpha of the module docstring, for lists of tensors; one host synchronization."""
    sums = torch.zeros(2)
    if d:
        sums = torch.stack([
            torch.stack([(x * y).sum().abs() for x, y in zip(d, d2, strict=True)]).sum(),
            torch.stack([torch.linalg.vector_norm(x) * torch.linalg.vector_norm(y)
                         for x, y in zip(d, d2, strict=True)]).sum()])
    product, norms = total(sums)
    return min(float(finite(product / (norms + EPS))), 1.0)
