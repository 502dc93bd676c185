"""Hyperball, arXiv 2606.16899 (AdamH, MuonH, SOAP-H): matrices of constant norm; lr is an angle."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from .parts.delta import Delta, Scope, matrices, norm, over

__all__ = ["Hyperball"]

SEARCH_SPACE: dict = {}
COST = {"gradient_evaluations": 1, "state_tensors": 0}
TESTED_AGAINST = "plain numpy"


class Hyperball(Delta):
    """Keeps each matrix at its initial Frobenius norm R and uses only the direction u of `base`:

        X = W - lr R u / ||u||,   W <- R X / ||X||

    lr is approximately the angle of a step in radians: start from sqrt(lr weight_decay) of the
    tuned rule with decay, and decay it to 0. The norm of u has no effect: rules whose directions
    differ only in scale, as by Muon's c(m, n), coincide, unless lr u of `base` is so small that it
    is lost in the rounding of the weights (see parts/delta.py). Norms are per matrix (m, n) of a
    stack.
    Give embeddings, head and vectors their own [optimizer.adamw] lr, since they cannot share an
    angle. Without routing, all tensors of two or more dimensions have constant norm.

    R is stored in float32 or wider (recomputing it would drift in bfloat16).

    Cost: no additional gradient evaluation; one number per matrix.
    Raises ValueError for a matrix of zeros, also one in a stack, which could never move (named by
    `names`, parameter -> name, if given), and if `base` has a weight decay or complex parameters.
    """

    stage, pins = "projection", True
    lr_is = "an angle"

    def __init__(self, base: Optimizer, scope: Scope = "matrix",
                 names: Mapping[Tensor, str] | None = None) -> None:
        self.names = dict(names or {})
        super().__init__(base, scope)

    def _require_fit(self, group: dict) -> None:
        super()._require_fit(group)
        params = self.scoped(group)
        zeros = [self.names.get(p, f"of shape {tuple(p.shape)}")
                 for p, moves in zip(params, are_nonzero(params), strict=True) if not moves]
        if zeros:
            raise ValueError(f"Hyperball would never move a matrix of zeros ({', '.join(zeros)}): "
                             "initialize it with random numbers")

    def move(self, p: Tensor, w: Tensor, u: Tensor, group: dict) -> Tensor:
        """Return the updated matrices of the class docstring."""
        if "radius" not in self.state[p]:
            self.state[p]["radius"] = norm(w)
        radius = self.state[p]["radius"]
        x = w - group["lr"] * radius * over(u, norm(u))
        return radius * over(x, norm(x))


def are_nonzero(params: list[Tensor]) -> list[bool]:
    """Whether every matrix of each tensor has a nonzero entry; True for an empty tensor. One host
    synchronization."""
    found = [(matrices(p.detach()) != 0).flatten(1).any(1).all() if p.numel() else
             torch.ones((), dtype=torch.bool, device=p.device) for p in params]
    return torch.stack(found).tolist() if found else []
