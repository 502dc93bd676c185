"""EF-signSGD, Karimireddy et al. 2019, arXiv 1901.09847, Algorithm 1: add the compression error of
an update to the next one. Top-k: Stich et al. 2018, arXiv 1809.07599."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from .parts import checks
from .parts.base import grads_of
from .parts.first_order import FirstOrder

__all__ = ["ErrorFeedback"]

SEARCH_SPACE = {
    "lr": (1e-3, 1.0, "log"),
    "weight_decay": (1e-5, 1e-1, "log"),
    "momentum": [0.0, 0.9, 0.95],
}
COST = {"gradient_evaluations": 1, "state_tensors": 1}  # 2 with momentum
TESTED_AGAINST = "plain numpy"

Compressor = Literal["sign", "none", "topk"]


class ErrorFeedback(FirstOrder):
    """SGD with compressed updates; the compression error e is added to the next update.

        m <- momentum m + g,   p = lr m + e
        d = compressed p,   W <- (1 - lr weight_decay) W - d,   e <- p - d

    compressor, per tensor: "sign" d = (||p||_1 / size) sign(p), one bit per weight and one number;
    "topk" the fraction `ratio` of entries with the largest magnitude, at least one (the first of
    equal ones); "none" d = p, which is SGD. Without momentum and decay W = W_0 - sum lr g + e holds
    in every step, so no part of a gradient is lost. Each term of e keeps the lr of its own step.

    This class computes the arithmetic in one process; nothing is communicated.

    Cost: 1 gradient evaluation per step, 1 state tensor per parameter, 2 with momentum.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter.
    """

    def __init__(self, params: Iterable, lr: float = 0.1, momentum: float = 0.0,
                 weight_decay: float = 0.0, compressor: Compressor = "sign",
                 ratio: float = 0.01) -> None:
        checks.non_negative(lr=lr, weight_decay=weight_decay)
        checks.fraction(momentum=momentum)
        checks.choice(Compressor, compressor=compressor)
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio must be in (0, 1], got {ratio!r}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay,
                                  "compressor": compressor, "ratio": ratio})

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        errors = self.buffers(params, "error")
        moves = [g.to(e.dtype) for g, e in zip(grads_of(params), errors, strict=True)]
        if group["momentum"]:
            momenta = self.buffers(params, "momentum_buffer")
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, moves)
            moves = momenta
        torch._foreach_add_(errors, torch._foreach_mul(moves, group["lr"]))
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for p, e in zip(params, errors, strict=True):
            sent = compressed(e, group["compressor"], group["ratio"])
            p.sub_(sent)
            e.sub_(sent)


def compressed(p: Tensor, compressor: str, ratio: float) -> Tensor:
    """Return the compressed form of `p`, decoded to its shape."""
    if compressor == "sign":
        return p.abs().mean() * p.sign()
    if compressor == "none":
        return p.clone()
    flat = p.flatten()
    first = flat.abs().argsort(descending=True, stable=True)[:max(1, int(ratio * flat.numel()))]
    return torch.zeros_like(flat).index_copy_(0, first, flat[first]).view_as(p)
