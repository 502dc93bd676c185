"""Adam-mini, Zhang et al. 2024, arXiv 2406.16793: Adam with one second moment per row."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from .parts import checks
from .parts.adam import whitened
from .parts.base import grads_of
from .parts.first_order import FirstOrder

__all__ = ["AdamMini"]

SEARCH_SPACE = {
    "lr": (1e-4, 1e-1, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "betas": [[0.9, 0.95], [0.9, 0.98], [0.9, 0.999]],
}
COST = {"gradient_evaluations": 1, "state_tensors": 2}  # the second has one value per block
TESTED_AGAINST = "by hand, plain numpy, pytorch_optimizer"

Block = Literal["row", "matrix"]


class AdamMini(FirstOrder):
    """AdamW with one second moment per block of a tensor.

        m <- beta1 m + (1 - beta1) g,   v_b <- beta2 v_b + (1 - beta2) mean of g^2 over block b
        W <- (1 - lr weight_decay) W - lr m_hat / (sqrt(v_hat_b) + eps)

    Blocks: each row of a matrix (an output neuron, a token), also in a 3-D stack, or with
    block="matrix" each matrix (the authors' first release); a whole convolution; each entry of a
    vector, as in Adam.

    Deviation: the authors (zyushun/Adam-mini 402aadf) choose blocks by parameter names, this class
    by shapes. Their query and key weights have one value per head: store them as stacks of heads in
    a group with `"block": "matrix"`; otherwise they have one value per row, which is finer. Their
    norm parameters have one value per vector, here one per entry.

    Cost: 1 gradient evaluation per step, 1 state tensor per parameter and one value per block.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter.
    """

    def __init__(self, params: Iterable, lr: float = 1e-3,
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0, block: Block = "row") -> None:
        checks.non_negative(lr=lr, eps=eps, weight_decay=weight_decay)
        checks.pair_of_fractions(betas=betas)
        checks.choice(Block, block=block)
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps,
                                  "weight_decay": weight_decay, "block": block})

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        exp_avgs = self.buffers(params, "exp_avg")
        grads = [g.to(m.dtype) for g, m in zip(grads_of(params), exp_avgs, strict=True)]
        # Clamp squares that overflow to the largest number: with infinity, `lerp` would give NaN.
        means = [block_means(g.square(), group["block"]).clamp_max_(torch.finfo(g.dtype).max)
                 for g in grads]
        for p, mean in zip(params, means, strict=True):
            self.state[p].setdefault("step", 0)
            self.state[p].setdefault("exp_avg_sq", torch.zeros_like(mean))
            self.state[p]["step"] += 1
        exp_avg_sqs = [self.state[p]["exp_avg_sq"] for p in params]
        torch._foreach_lerp_(exp_avgs, grads, 1 - group["betas"][0])
        torch._foreach_lerp_(exp_avg_sqs, means, 1 - group["betas"][1])
        steps = [self.state[p]["step"] for p in params]
        directions = whitened(exp_avgs, exp_avg_sqs, steps, group["betas"], group["eps"])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for p, u in zip(params, directions, strict=True):
            p.add_(u.to(p.dtype), alpha=-group["lr"])


def block_means(tensor: Tensor, block: str) -> Tensor:
    """Return the mean over each block, in a shape that broadcasts against `tensor`: (m, 1) for
    (m, n), or (1, 1) with block "matrix"; (1, ..., 1) for more than three dimensions; a vector is
    returned unchanged."""
    if tensor.ndim < 2:
        return tensor
    if tensor.ndim > 3:
        return tensor.mean(dim=tuple(range(tensor.ndim)), keepdim=True)
    return tensor.mean(dim=-1 if block == "row" else (-2, -1), keepdim=True)
