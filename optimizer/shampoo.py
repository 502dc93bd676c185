"""Shampoo, Gupta et al. 2018, arXiv 1802.09568, Algorithm 1: two-sided matrix preconditioning.

Moving averages, filtering, grafting: Shi et al. 2023, arXiv 2309.06497 (Distributed Shampoo).
"""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from .parts import checks
from .parts.kronecker import accumulate, inverse_root, matrix_gradient, sides
from .parts.matrix import MatrixOptimizer

__all__ = ["Shampoo"]

SEARCH_SPACE = {
    "lr": (1e-4, 1e-1, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "beta2": [0.95, 0.99, 1.0],
    "graft": ["none", "adam"],
}
COST = {"gradient_evaluations": 1, "state_tensors": 5}  # one of shape (m, n), four square
TESTED_AGAINST = "by hand, plain numpy, pytorch_optimizer"

GRAFT_EPS = 1e-8  # added to Adam's denominator
Graft = Literal["none", "sgd", "adam"]


class Shampoo(MatrixOptimizer):
    """Preconditions the momentum (m, n) by inverse roots of Kronecker statistics L and R.

        L <- beta2 L + (1 - beta2) G G^T,   R <- beta2 R + (1 - beta2) G^T G
        M <- momentum M + (1 - momentum) G
        P = (L_hat + eps I)^(-exponent) M_hat (R_hat + eps I)^(-exponent)
        graft: P <- P ||D|| / ||P||   with D = M_hat ("sgd") or Adam's direction ("adam")
        W <- (1 - lr weight_decay) W - lr P

    L_hat = L / (1 - beta2^t), R_hat and M_hat likewise. With beta2 = 1, L and R are sums, as in the
    paper (and graft "adam" is AdaGrad). If G has full rank the first step is Muon's: P = msign(G)
    for exponent 1/4 and eps 0. A side longer than max_precond_dim is not preconditioned, and the
    other side uses twice the exponent; max_precond_dim = 0 is SGD with momentum.

    Roots are computed by eigh in each of the first precondition_frequency steps and then every
    precondition_frequency steps: early statistics have low rank, and an old root would multiply new
    gradient directions by eps^(-exponent). For precondition_frequency > 1, and on real problems,
    use beta2 < 1 and graft = "adam".

    Deviations: a convolution is one matrix (out, in * kernel) with exponent 1/4 per side, a 3-D
    tensor a stack of matrices; the paper (and pytorch_optimizer.Shampoo) uses 1 / (2 order) for
    every axis of a tensor of that order. eps is added when the root is computed, not as L_0 =
    eps I: the same for beta2 = 1, while a moving average would decay L_0 (pytorch_optimizer's
    ScalableShampoo, which also omits the bias correction: a factor sqrt(1 - beta2^t) of P). Other
    ports use 1/order (moskomule), which is exponent = 0.5; Algorithm 1 has 1/4.

    Cost: 1 gradient evaluation per step, 1 + 2 (m^2 + n^2) / (m n) state tensors per matrix (1 more
    for graft = "adam"), products of 2 m n (m + n), and every precondition_frequency steps an eigh
    per side, of order 10 (m^3 + n^3).
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-2,
        momentum: float = 0.9,
        beta2: float = 1.0,
        eps: float = 1e-12,
        weight_decay: float = 0.0,
        exponent: float = 0.25,
        graft: Graft = "none",
        precondition_frequency: int = 1,
        max_precond_dim: int = 1024,
    ) -> None:
        checks.non_negative(lr=lr, eps=eps, weight_decay=weight_decay, exponent=exponent)
        checks.fraction(momentum=momentum)
        if not 0 <= beta2 <= 1:
            raise ValueError(f"beta2 must be in [0, 1], got {beta2!r}")
        checks.choice(Graft, graft=graft)
        checks.at_least(1, precondition_frequency=precondition_frequency)
        checks.at_least(0, max_precond_dim=max_precond_dim)
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "beta2": beta2, "eps": eps,
            "weight_decay": weight_decay, "exponent": exponent, "graft": graft,
            "precondition_frequency": precondition_frequency, "max_precond_dim": max_precond_dim})

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for p in params:
            direction = self._direction(self.state[p], matrix_gradient(p), group)
            p.add_(direction.reshape(p.shape), alpha=-group["lr"])

    def _direction(self, entry: dict, grads: Tensor, group: dict) -> Tensor:
        """Update the state and return P for one stack of gradients, both (stack, m, n)."""
        if "step" not in entry:
            entry.update(step=0, exp_avg=torch.zeros_like(grads))
        entry["step"] += 1
        update_roots(entry, grads, group)
        entry["exp_avg"].lerp_(grads, 1 - group["momentum"])
        momentum = entry["exp_avg"] / (1 - group["momentum"] ** entry["step"])
        direction = momentum
        if "left_root" in entry:
            direction = entry["left_root"] @ direction
        if "right_root" in entry:
            direction = direction @ entry["right_root"]
        if group["graft"] == "none":
            return direction
        if group["graft"] == "adam":
            momentum = adam_direction(entry, momentum, grads, group["beta2"])
        return with_length_of(direction, momentum)


def correction(beta2: float, step: int) -> float:
    """Return the divisor for bias correction after `step` terms, 1 - beta2^step; 1 for a sum."""
    return 1 - beta2**step if beta2 < 1 else 1.0


def update_roots(entry: dict, grads: Tensor, group: dict) -> None:
    """Update the statistics of a state entry and, if due in this step, their inverse roots."""
    step, frequency = entry["step"], group["precondition_frequency"]
    preconditioned = sides(grads.shape, group["max_precond_dim"])
    for side in preconditioned:
        statistic = accumulate(entry, side, grads, group["beta2"])
        if step <= frequency or step % frequency == 0:
            exponent = group["exponent"] * 2 / len(preconditioned)
            entry[f"{side}_root"] = inverse_root(
                statistic / correction(group["beta2"], step), exponent, group["eps"])


def adam_direction(entry: dict, momentum: Tensor, grads: Tensor, beta2: float) -> Tensor:
    """Update v, the average of squares (their sum if beta2 = 1), and return momentum / (sqrt(v_hat)
    + GRAFT_EPS)."""
    if "exp_avg_sq" not in entry:
        entry["exp_avg_sq"] = torch.zeros_like(grads)
    weight = 1 - beta2 if beta2 < 1 else 1.0
    entry["exp_avg_sq"].mul_(beta2).addcmul_(grads, grads, value=weight)
    corrected = entry["exp_avg_sq"] / correction(beta2, entry["step"])
    return momentum / (corrected.sqrt() + GRAFT_EPS)


def with_length_of(direction: Tensor, other: Tensor) -> Tensor:
    """Scale each matrix of `direction` to the Frobenius norm of the same matrix of `other`."""
    lengths = [torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) for x in (direction, other)]
    return direction * (lengths[1] / lengths[0].clamp_min(torch.finfo(direction.dtype).tiny))
