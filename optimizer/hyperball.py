"""Hyperball, arXiv 2606.16899 (AdamH, MuonH, SOAP-H): matrices of constant norm, lr an angle."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from .parts.delta import Delta, Scope, norm, over

__all__ = ["Hyperball"]

SEARCH_SPACE: dict = {}
COST = {"gradient_evaluations": 1, "state_tensors": 0}
TESTED_AGAINST = "plain numpy"


class Hyperball(Delta):
    """Keeps each matrix at the norm R that it has at its first step; of `base` only the direction
    u counts:

        X = W - lr R u / ||u||,   W <- R X / ||X||

    So lr is about the angle of a step in radians: start from sqrt(lr weight_decay) of the tuned
    rule with decay, and let it fall to 0. Rules of the same direction coincide: warm-up, clipping,
    and scales such as Muon's c(m, n) have no effect. Norms are those of each matrix of a stack.
    Give embeddings, head and vectors, which share lr otherwise, their own [optimizer.adamw] lr; a
    rule without routing has all tensors of two or more dimensions on the ball.

    R is kept in float32 at least (the current norm would drift in bfloat16). A matrix of zeros
    would never move. Raises ValueError for one, by `names` (parameter -> name) if given.

    Cost: no gradient evaluation of its own; one number per matrix.
    """

    stage, pins = "projection", True
    lr_is = "an angle"

    def __init__(self, base: Optimizer, scope: Scope = "matrix",
                 names: Mapping[Tensor, str] | None = None) -> None:
        super().__init__(base, scope)
        params = [p for group in self.param_groups for p in self.scoped(group)]
        zeros = [(names or {}).get(p, f"of shape {tuple(p.shape)}")
                 for p, moves in zip(params, are_nonzero(params), strict=True) if not moves]
        if zeros:
            raise ValueError(f"Hyperball would never move a matrix of zeros ({', '.join(zeros)}): "
                             "initialize it with random numbers")

    def move(self, p: Tensor, w: Tensor, u: Tensor, group: dict) -> Tensor:
        """The update of the class docstring."""
        if "radius" not in self.state[p]:
            self.state[p]["radius"] = norm(w)
        radius = self.state[p]["radius"]
        x = w - group["lr"] * radius * over(u, norm(u))
        return radius * over(x, norm(x))


def are_nonzero(params: list[Tensor]) -> list[bool]:
    """Whether each has a number other than 0, empty ones included; one wait for the device."""
    return torch.stack([p.detach().any() | (p.numel() == 0) for p in params]).tolist() \
        if params else []
