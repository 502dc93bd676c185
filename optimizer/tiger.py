"""Tiger, Su 2023 (bojone/tiger): Lion with one decay rate and steps relative to the weights."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .parts import checks
from .parts.base import grads_of
from .parts.first_order import FirstOrder

__all__ = ["Tiger"]

SEARCH_SPACE = {
    "lr": (1e-4, 1e-1, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "beta": [0.9, 0.945, 0.965],
}
COST = {"gradient_evaluations": 1, "state_tensors": 1}
TESTED_AGAINST = "by hand, plain numpy"

VECTOR_RATE = 0.5  # factor of lr for biases and gains


class Tiger(FirstOrder):
    """Steps along the sign of the momentum, with a rate relative to the RMS of each tensor.

        m <- beta m + (1 - beta) g
        W <- W - lr_p (sign(m) + weight_decay W),   lr_p = lr max(rms_floor, RMS(W))

    Vectors (biases, gains) use lr_p = lr / 2 and no decay; the author's code (8af9865) selects them
    by name. rms_floor allows a tensor of zeros to move. Deviations: an embedding has one RMS for
    the table, not one per row. Two features of the author's code are not implemented: on a NaN
    gradient it keeps m and multiplies W by 0.99 (here m becomes NaN, and its sign is 0), and it can
    accumulate gradients in m over several steps.

    Cost: 1 gradient evaluation per step, 1 state tensor per parameter.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter.
    """

    def __init__(self, params: Iterable, lr: float = 1e-3, beta: float = 0.965,
                 weight_decay: float = 0.01, rms_floor: float = 1e-3) -> None:
        checks.non_negative(lr=lr, weight_decay=weight_decay, rms_floor=rms_floor)
        checks.fraction(beta=beta)
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay,
                                  "rms_floor": rms_floor})

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        momenta = self.buffers(params, "exp_avg")
        grads = [g.to(m.dtype) for g, m in zip(grads_of(params), momenta, strict=True)]
        torch._foreach_lerp_(momenta, grads, 1 - group["beta"])
        for p, m in zip(params, momenta, strict=True):
            if p.ndim < 2:
                p.add_(m.sign(), alpha=-group["lr"] * VECTOR_RATE)
                continue
            w = p.to(m.dtype)
            rate = group["lr"] * w.square().mean().sqrt().clamp_min(group["rms_floor"])
            p.sub_((rate * (m.sign() + group["weight_decay"] * w)).to(p.dtype))
