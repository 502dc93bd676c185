"""Sophia-H, Liu et al. 2023, arXiv 2305.14342, Algorithm 3 with Hutchinson's estimate of the
Hessian's diagonal, here from a difference of gradients."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .parts import checks
from .parts.base import grads_of
from .parts.first_order import FirstOrder
from .parts.sharpness import norm_of_all
from .parts.sharpness_aware import SharpnessAware

__all__ = ["SophiaH"]

SEARCH_SPACE = {
    "lr": (1e-5, 1e-2, "log"),
    "weight_decay": (1e-2, 1.0, "log"),
    "gamma": (1e-3, 1.0, "log"),
}
COST = {"gradient_evaluations": 1.1, "state_tensors": 2}  # 1 + 1 / k gradient evaluations
TESTED_AGAINST = "by hand"

RADIUS = 1e-3  # norm of the probe r z over the norm of all weights
LEAST = 1e-3  # smallest norm of all weights that counts: r must not be 0


class SophiaH(SharpnessAware, FirstOrder):
    """Momentum divided by an estimate of the Hessian's diagonal, each entry's step clipped to lr.

        m <- beta1 m + (1 - beta1) g
        steps 1, k + 1, ...: h <- beta2 h + (1 - beta2) z (g(W + r z) - g) / r,  z of random signs
        W <- (1 - lr weight_decay) W - lr clip(m / max(gamma h, eps), -1, 1)

    ||r z|| is a thousandth of ||W||, over all parameters; g(W + r z) is the closure's gradient of
    the same batch. Keep the weights in float32 or wider: bfloat16 rounds most of r z away. A norm
    ||W|| below 0.001 counts as 0.001. The generator of the signs is seeded by the step number, so a
    resumed run draws the same signs. Where h is not positive the step is lr sign(m).

    Deviations: the paper computes the product H z exactly, by differentiating the gradient; the
    difference here has an error of order r. Sophia-G, which needs labels sampled from the model, is
    not implemented. In the released code rho = 0.04 is multiplied by the batch size in tokens, so
    its scale differs from gamma's.

    Cost: 1 + 1 / k gradient evaluations per step, 2 state tensors per parameter.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter, and for
    steps 1, k + 1, ... without a closure or `first_step`.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.96, 0.99),
        gamma: float = 0.01,
        eps: float = 1e-12,
        weight_decay: float = 0.1,
        k: int = 10,
    ) -> None:
        checks.non_negative(lr=lr, gamma=gamma, eps=eps, weight_decay=weight_decay)
        checks.pair_of_fractions(betas=betas)
        checks.at_least(1, k=k)
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "gamma": gamma, "eps": eps,
                                  "weight_decay": weight_decay})
        self.k = k
        self.keep_sharpness(0.0, "constant", 0.0, step=0)

    def ascend(self, params: list[Tensor]) -> tuple[list[Tensor] | None, list[Tensor]]:
        """Return the offset r z of each parameter in every k-th step, otherwise None."""
        self.scalars["step"] += 1
        if (self.scalars["step"] - 1) % self.k:
            return None, []
        signs = self._signs(params)
        r = self._radius(params, signs)
        return [z * r for z in signs], grads_of(params)

    def combine(self, params: list[Tensor], base: list[Tensor]) -> None:
        """Update h from both gradients; restore the gradient at the weights for the update."""
        signs = self._signs(params)
        r = self._radius(params, signs)
        beta2 = {p: group["betas"][1] for group in self.param_groups for p in group["params"]}
        for p, h, z, g in zip(params, self.buffers(params, "hessian"), signs, base, strict=True):
            if p.grad is not None:
                h.lerp_((z * (p.grad - g) / r).to(h.dtype), 1 - beta2[p])
            p.grad = g

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        momenta, curvatures = (self.buffers(params, key) for key in ("exp_avg", "hessian"))
        grads = [g.to(m.dtype) for g, m in zip(grads_of(params), momenta, strict=True)]
        torch._foreach_lerp_(momenta, grads, 1 - group["betas"][0])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for p, m, h in zip(params, momenta, curvatures, strict=True):
            ratio = m / (group["gamma"] * h).clamp_min(group["eps"])
            p.add_(ratio.clamp_(-1, 1).nan_to_num_(0.0), alpha=-group["lr"])

    @staticmethod
    def _radius(params: list[Tensor], signs: list[Tensor]) -> Tensor:
        return RADIUS * norm_of_all(params).clamp_min(LEAST) / norm_of_all(signs).clamp_min(1)

    @torch.compiler.disable  # torch 2.11 warns that it cannot trace a generator
    def _signs(self, params: list[Tensor]) -> list[Tensor]:
        order = {p: index for index, p in enumerate(
            p for group in self.param_groups for p in group["params"])}
        return [random_signs(p, self.scalars["step"] * len(order) + order[p]) for p in params]


def random_signs(like: Tensor, seed: int) -> Tensor:
    """Return independent random signs in the shape of `like`; global random state is not used."""
    generator = torch.Generator(like.device).manual_seed(seed)
    bits = torch.randint(2, like.shape, generator=generator, device=like.device)
    return (2 * bits - 1).to(like.dtype)
