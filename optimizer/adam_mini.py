"""Adam-mini, Zhang et al. 2024, arXiv 2406.16793: Adam with one second moment for each row."""

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
COST = {"gradient_evaluations": 1, "state_tensors": 2}  # the second one value a block
TESTED_AGAINST = "by hand, plain numpy, pytorch_optimizer"

Block = Literal["row", "matrix"]


class AdamMini(FirstOrder):
    """AdamW whose second moment is one number for each block of a tensor.

        m <- beta1 m + (1 - beta1) g,   v_b <- beta2 v_b + (1 - beta2) mean of g^2 over block b
        W <- (1 - lr weight_decay) W - lr m_hat / (sqrt(v_hat_b) + eps)

    Blocks: each row of a matrix and of each matrix of a stack (an output neuron, a token), or with
    block="matrix" each matrix (the authors' first release); a convolution whole; each entry of a
    vector, as in Adam.

    Deviation: the authors read the blocks off parameter names, a shape shows less. Their q and k
    have one value a head: hold them as stacks of heads in a group with `"block": "matrix"`; flat
    ones keep one a row, which is finer. Their norms have one value a vector, ours one an entry.

    Cost: 1 gradient evaluation per step, 1 state tensor per parameter and one value per block.
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
        # Squares that overflow become the largest number: in `lerp`, infinity would leave NaN.
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
    """The mean over each block, in a shape that broadcasts against `tensor`: (m, n) gives (m, 1),
    or for block "matrix" (1, 1); more than three dimensions give all ones; a vector itself."""
    if tensor.ndim < 2:
        return tensor
    if tensor.ndim > 3:
        return tensor.mean(dim=tuple(range(tensor.ndim)), keepdim=True)
    return tensor.mean(dim=-1 if block == "row" else (-2, -1), keepdim=True)
