"""Celo2, arXiv 2602.19142: a learned rule; a network of 347 weights computes Muon's direction.

The weights are our own: celo2.json beside this file, written by exp/papers/survey/meta_train.py.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .parts import checks
from .parts.kronecker import matrix_gradient
from .parts.matrix import MatrixOptimizer
from .parts.polar import NsDtype, Orthogonalizer, as_matrices, msign, polar_options

__all__ = ["Celo2"]

SEARCH_SPACE = {"lr": (1e-4, 1e-2, "log"), "weight_decay": (1e-3, 1.0, "log")}
# Three averages of g in one tensor, one of g^2; row and column means are smaller.
COST = {"gradient_evaluations": 1, "state_tensors": 4}
TESTED_AGAINST = "the authors' class"

WEIGHTS = Path(__file__).with_suffix(".json")
SHAPES = ((8, 30), (8,), (8, 8), (8,), (3, 8), (3,))  # weight (out, in) and bias of three layers
DECAYS, SQUARE_DECAY = (0.9, 0.99, 0.999), 0.95
CLIP, NARROW = 1000.0, 0.1  # clipping bounds of the gradient and of the second feature
FLOOR, EPS, TINY = 1e-9, 1e-8, 1e-30
Weights = Literal["trained", "start"]


class Celo2(MatrixOptimizer):
    """A small network computes the direction of each entry of a matrix from 30 features:

        g clipped to +-1000;   m_k <- d_k m_k + (1 - d_k) g,   d = 0.9, 0.99, 0.999
        r <- 0.95 r + 0.05 g^2
        a_k, b_k: averages at d_k of the means of g^2 + 1e-30 over the longer and the shorter side
        D = MLP(features(g, W, m, r, a, b)),  each feature divided by its RMS over the matrix
        O = msign(D)                          (Newton-Schulz, ns_steps)
        W <- (1 - lr weight_decay) (W - lr O / RMS(O))

    The function `features` lists the 30 in order. The network is 30 -> 8 -> 8 -> 3 with ReLU; only
    its first output has an effect (the second is multiplied by 0 in the authors' code, the third is
    unused). A step has RMS lr, as Adam's. The AdamW track has betas (0.9, 0.95) unless its group
    sets others. Moments have no bias correction.

    weights: "trained" are those of celo2.json, which also records how they were trained; "start"
    are the initial weights of that training, which give D = m_1: Muon without Nesterov, at RMS lr.
    The authors' own weights have no clear license. The attribute `network` (347 float64 numbers in
    the layout of SHAPES) may be replaced; it is not part of checkpoints.

    Deviation: a matrix whose gradients have all been zero changes by decay only; the network alone
    would move it, because of its biases and W. Matrices of a stack are updated separately, a
    convolution as one matrix (out, in * kernel).

    Cost: 1 gradient evaluation per step; 4 state tensors per matrix and 3 numbers per row and
    column; temporary memory of about 70 tensors of the size of the largest matrix.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
        weights: Weights = "trained",
        orthogonalizer: Orthogonalizer = "keller",
        ns_dtype: NsDtype = "auto",
    ) -> None:
        checks.non_negative(lr=lr, weight_decay=weight_decay)
        checks.choice(Weights, weights=weights)
        numbers = json.loads(WEIGHTS.read_text(encoding="utf-8"))[weights]
        self.network = torch.tensor(numbers, dtype=torch.float64)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay,
                                  **polar_options(ns_steps, orthogonalizer, ns_dtype)})

    def _add_adamw_group(self, group: dict) -> None:
        super()._add_adamw_group({"betas": (0.9, 0.95), **group})

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        directions = []
        for p in params:
            grads = matrix_gradient(p).clamp(-CLIP, CLIP)
            tall = grads.shape[-2] > grads.shape[-1]
            grads = grads.mT if tall else grads
            weights = as_matrices(p).to(grads.dtype)
            entry = self.state[p]
            update_statistics(entry, grads)
            direction = mlp(features(weights.mT if tall else weights, grads, entry),
                            self.network.to(grads.device, grads.dtype))
            # 0 for a matrix whose gradients have all been zero, otherwise 1.
            has_gradient = entry["exp_avg"][-1].abs().amax((-2, -1), keepdim=True).sign()
            direction = direction * has_gradient
            directions.append(direction.mT if tall else direction)
        for p, o in zip(params, msign(directions, group), strict=True):
            step = o * (o.square().mean((-2, -1), keepdim=True) + FLOOR).rsqrt()
            p.add_(step.reshape(p.shape), alpha=-group["lr"])
            p.mul_(1 - group["lr"] * group["weight_decay"])


def update_statistics(entry: dict, grads: Tensor) -> None:
    """Create or update the moving averages of one parameter; grads (stack, m, n) with m <= n."""
    if "exp_avg" not in entry:
        several = grads.new_zeros(len(DECAYS), *grads.shape)
        entry.update(exp_avg=several, exp_avg_sq=torch.zeros_like(grads),
                     row=several[..., :1].clone(), column=several[..., :1, :].clone())
    squares = grads.square()
    entry["exp_avg_sq"].lerp_(squares, 1 - SQUARE_DECAY)
    for k, decay in enumerate(DECAYS):
        entry["exp_avg"][k].lerp_(grads, 1 - decay)
        entry["row"][k].lerp_((squares + TINY).mean(-1, keepdim=True), 1 - decay)
        entry["column"][k].lerp_((squares + TINY).mean(-2, keepdim=True), 1 - decay)


def features(weights: Tensor, grads: Tensor, entry: dict) -> Tensor:
    """Return 30 features of each entry, (30, stack, m, n), each of RMS 1 over its matrix (m, n)."""
    averages, squares, row, column = (entry[key] for key in ("exp_avg", "exp_avg_sq", "row",
                                                             "column"))
    scale = (squares + EPS).rsqrt()
    factored = ((row / (row.mean(-2, keepdim=True) + FLOOR)).clamp_min(FLOOR).rsqrt()
                * column.clamp_min(FLOOR).rsqrt())
    columns = [grads, grads.clamp(-NARROW, NARROW), weights, *averages, squares,
               *(averages * scale), scale, *(grads * factored), grads * scale,
               *row, *column, *(row + EPS).rsqrt(), *(column + EPS).rsqrt(),
               *(averages * factored)]
    stacked = torch.stack([feature.expand_as(grads) for feature in columns])
    norms = torch.linalg.vector_norm(stacked, dim=(-2, -1), keepdim=True)
    return stacked.mul_((norms.square() / grads[0].numel() + FLOOR).rsqrt())


def mlp(inputs: Tensor, numbers: Tensor) -> Tensor:
    """Return the network's first output, (...), for inputs (30, ...); numbers: its 347 weights."""
    parts = numbers.split([torch.Size(shape).numel() for shape in SHAPES])
    w1, b1, w2, b2, w3, b3 = (part.view(shape) for part, shape in zip(parts, SHAPES, strict=True))
    hidden = torch.addmm(b1[:, None], w1, inputs.flatten(1)).relu_()
    hidden = torch.addmm(b2[:, None], w2, hidden).relu_()
    return torch.addmm(b3[:1, None], w3[:1], hidden).view(inputs.shape[1:])
