"""AdaEps (dmf-archive/ARS, optimizer summary 4.3): Adam with an eps relative to the gradient."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .parts import checks
from .parts.adam import moments, update_moments
from .parts.base import grads_of
from .parts.first_order import FirstOrder

__all__ = ["AdaEps"]

SEARCH_SPACE = {
    "lr": (1e-4, 1e-1, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "betas": [[0.9, 0.95], [0.9, 0.98], [0.9, 0.999]],
    "eps_ratio": (1e-3, 1.0, "log"),
}
COST = {"gradient_evaluations": 1, "state_tensors": 2}
TESTED_AGAINST = "by hand, plain numpy"


class AdaEps(FirstOrder):
    """AdamW with eps set, per tensor, to a fraction of the median root of the second moment.

        m <- beta1 m + (1 - beta1) g,   v <- beta2 v + (1 - beta2) g^2
        eps_W = max(eps_ratio median(sqrt(v_hat)), eps)       (torch's lower median)
        W <- (1 - lr weight_decay) W - lr m_hat / (sqrt(v_hat) + eps_W)

    While eps_W is above the floor `eps`, the step is invariant to the scale of the gradient. An
    embedding with mostly zero-gradient rows has median 0 and uses the floor. The source does not
    give eps_ratio; the default 0.1 is our choice.

    Cost: 1 gradient evaluation per step, 2 state tensors per parameter.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter.
    """

    def __init__(self, params: Iterable, lr: float = 1e-3,
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-12,
                 eps_ratio: float = 0.1, weight_decay: float = 0.01) -> None:
        checks.non_negative(lr=lr, eps=eps, eps_ratio=eps_ratio, weight_decay=weight_decay)
        checks.pair_of_fractions(betas=betas)
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps,
                                  "eps_ratio": eps_ratio, "weight_decay": weight_decay})

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        exp_avgs, exp_avg_sqs, steps = moments(self.state, params)
        grads = grads_of(params)
        update_moments(exp_avgs, exp_avg_sqs, grads, grads, group["betas"])
        beta1, beta2 = group["betas"]
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for p, m, v, t in zip(params, exp_avgs, exp_avg_sqs, steps, strict=True):
            root = (v / (1 - beta2**t)).sqrt()
            eps = (group["eps_ratio"] * root.median()).clamp_min(group["eps"])
            direction = m / (1 - beta1**t) / (root + eps)
            p.add_(direction.to(p.dtype), alpha=-group["lr"])
