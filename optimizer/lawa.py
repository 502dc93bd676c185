"""LAWA, Kaddour 2022, arXiv 2209.14981: the mean of the latest snapshots of the weights."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from .parts import checks
from .parts.averaged import Averaged, wide

__all__ = ["LAWA"]

SEARCH_SPACE = {"every": [10, 100], "k": [3, 6, 10]}
COST = {"gradient_evaluations": 1, "state_tensors": 6}
TESTED_AGAINST = "plain numpy"


class LAWA(Averaged):
    """Evaluates the mean of the last k snapshots (fewer at first), one per `every` steps; before
    the first snapshot the weights themselves.

    Cost: no additional gradient evaluation; k state tensors per parameter, k + 1 while evaluating.
    Raises ValueError for an invalid argument, a `base` with its own weights for evaluation, and a
    step in eval mode.
    """

    def __init__(self, base: Optimizer, k: int = 6, every: int = 10) -> None:
        checks.iterations(k=k)  # an upper limit, since each snapshot is a copy of the weights
        checks.at_least(1, every=every)
        super().__init__(base)
        self.k, self.every = k, every
        self.keep_scalars(steps=0, snapshots=0, evaluating=0)

    @property
    def has_average(self) -> bool:
        """Whether there is a snapshot."""
        return self.scalars["snapshots"] > 0

    def collect(self, p: Tensor, state: dict) -> None:
        """Replace the oldest snapshot; the state tensor is (k, *shape)."""
        if "snapshots" not in state:
            state["snapshots"] = torch.stack([wide(p)] * self.k)
        if self.scalars["steps"] % self.every == 0:
            state["snapshots"][self.scalars["snapshots"] % self.k].copy_(p)

    def counted(self) -> None:
        """Count the snapshot."""
        self.scalars["snapshots"] += self.scalars["steps"] % self.every == 0

    def evaluated(self, p: Tensor) -> Tensor | None:
        """Return the mean of the existing snapshots; None if there is none."""
        count = min(self.k, self.scalars["snapshots"])
        return self.state[p]["snapshots"][:count].mean(0) \
            if count and "snapshots" in self.state[p] else None
