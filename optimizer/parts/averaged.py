"""The base of wrappers that evaluate other weights than they train: averages, Schedule-Free."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .base import Closure, switching
from .wrapper import Wrapper


class TwoWeights(Wrapper):
    """`eval()` puts the weights to evaluate into the model and keeps those that are trained in the
    state, to the bit; `train()` puts them back. A state_dict of either mode loads, with the weights
    that the model had then. Batch-norm statistics are those of the trained weights until they are
    computed again (torch.optim.swa_utils.update_bn). Subclasses call `keep_scalars` with
    evaluating=0.

    Raises ValueError where `base` has weights for evaluation already, and for a step in eval mode.
    """

    def __init__(self, base: Optimizer, *arguments: Any) -> None:
        if other := switching(base):
            raise ValueError(f"{type(self).__name__} and {type(other).__name__} both choose the "
                             "weights that are evaluated: use one of them")
        super().__init__(base, *arguments)

    def evaluated(self, p: Tensor) -> Tensor | None:
        """The weights to evaluate in the place of `p`; None if those that are trained."""
        raise TypeError(f"{type(self).__name__} defines no evaluated")

    @torch.no_grad()
    def eval(self) -> None:
        """Put the weights to evaluate into the model."""
        if not self.scalars["evaluating"]:
            for p in self.parameters:
                weight = self.evaluated(p) if self.state.get(p) else None
                if weight is not None:
                    self.state[p]["trained_weight"] = p.detach().clone()
                    p.copy_(weight)
            self.scalars["evaluating"] = 1

    @torch.no_grad()
    def train(self) -> None:
        """Put the weights that are trained back into the model."""
        if self.scalars["evaluating"]:
            for p in self.parameters:
                if "trained_weight" in self.state.get(p, {}):
                    p.copy_(self.state[p].pop("trained_weight"))
            self.scalars["evaluating"] = 0

    def inner_closure(self, closure: Closure | None) -> Closure | None:
        """The closure as it is. Raises ValueError in eval mode."""
        if self.scalars["evaluating"]:
            raise ValueError(f"{type(self).__name__} holds the weights to evaluate: train() puts "
                             "back those that a step moves")
        return super().inner_closure(closure)


class Averaged(TwoWeights):
    """Averages of the weights after each step of `base`, which are evaluated but never trained.

    Subclasses give `collect`. The trajectory is that of `base` alone, to the bit.
    """

    stage = "average"

    @torch.compiler.disable
    def after_step(self) -> None:
        """`collect` every weight that has moved, and count the step."""
        self.scalars["steps"] += 1
        for p in self.parameters:
            if p.numel() and (p.grad is not None or self.state.get(p)):
                self.collect(p, self.state[p])
        self.counted()

    def collect(self, p: Tensor, state: dict) -> None:
        """Take the weight after a step into the average in `state`."""
        raise TypeError(f"{type(self).__name__} defines no collect")

    def counted(self) -> None:
        """What changes in `scalars` after a step, once all weights are collected."""


def wide(p: Tensor) -> Tensor:
    """A copy of `p` in float32 at least."""
    return p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
