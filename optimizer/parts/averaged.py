"""Base classes of wrappers with separate weights for evaluation: averages, Schedule-Free."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .base import Closure, switching
from .wrapper import Wrapper


class TwoWeights(Wrapper):
    """A wrapper with separate weights for evaluation. `eval()` copies them into the model and keeps
    the trained weights in the state; `train()` restores the trained weights bit for bit.

    A state_dict saved in either mode loads together with the model weights saved with it; one that
    torch.distributed.checkpoint flattens must be saved in training mode. Batch-norm statistics
    belong to the trained weights until they are recomputed (torch.optim.swa_utils.update_bn).
    Subclasses give `evaluated` and call `keep_scalars` with
    evaluating=0. Raises ValueError if `base` already has separate weights for evaluation, for a
    step in eval mode, and for a checkpoint of eval mode without the trained weights.
    """

    def __init__(self, base: Optimizer, *arguments: Any) -> None:
        if other := switching(base):
            raise ValueError(f"{type(self).__name__} and {type(other).__name__} both choose the "
                             "weights for evaluation: use only one of them")
        super().__init__(base, *arguments)

    def evaluated(self, p: Tensor) -> Tensor | None:
        """Return the weights to evaluate instead of `p`, in its shape; None to evaluate `p`."""
        raise TypeError(f"{type(self).__name__} must define evaluated()")

    @torch.no_grad()
    def eval(self) -> None:
        """Copy the weights for evaluation into the model."""
        if not self.scalars["evaluating"]:
            for p in self.parameters:
                weight = self.evaluated(p) if self.state.get(p) else None
                if weight is not None:
                    self.state[p]["trained_weight"] = p.detach().clone()
                    p.copy_(weight)
            self.scalars["evaluating"] = 1

    @torch.no_grad()
    def train(self) -> None:
        """Restore the trained weights in the model."""
        if self.scalars["evaluating"]:
            for p in self.parameters:
                if "trained_weight" in self.state.get(p, {}):
                    p.copy_(self.state[p].pop("trained_weight"))
            self.scalars["evaluating"] = 0

    def inner_closure(self, closure: Closure | None) -> Closure | None:
        """Return the closure unchanged. Raises ValueError in eval mode."""
        self._require_training()
        return super().inner_closure(closure)

    def first_step(self, zero_grad: bool = False) -> bool:
        """Call `first_step` of the optimizer inside. Raises ValueError in eval mode."""
        self._require_training()
        return super().first_step(zero_grad)

    def _require_training(self) -> None:
        if self.scalars["evaluating"]:
            raise ValueError(f"{type(self).__name__} is in evaluation mode: call train() before "
                             "step()")

    def after_loading(self) -> None:
        """Check that a checkpoint of eval mode has the trained weights: flattened by
        torch.distributed.checkpoint it keeps only the keys that a new optimizer has."""
        super().after_loading()
        for p in self.parameters if self.scalars["evaluating"] else ():
            state = self.state.get(p, {})
            if state and "trained_weight" not in state and self.evaluated(p) is not None:
                raise ValueError("the checkpoint was saved in evaluation mode and lacks the "
                                 "trained weights: call train() before saving it")


class Averaged(TwoWeights):
    """Averages the weights after each step of `base`, for evaluation only.

    Subclasses give `collect`. The trained weights are bitwise those of `base` alone.
    """

    stage = "average"

    @torch.compiler.disable
    def after_step(self) -> None:
        """Call `collect` for every parameter that has a gradient or state, and count the step."""
        self.scalars["steps"] += 1
        for p in self.parameters:
            if p.numel() and (p.grad is not None or self.state.get(p)):
                self.collect(p, self.state[p])
        self.counted()

    def collect(self, p: Tensor, state: dict) -> None:
        """Update the average in `state` with the weight `p` after a step."""
        raise TypeError(f"{type(self).__name__} must define collect()")

    def counted(self) -> None:
        """Hook to update `scalars` after each step, once all weights are collected."""


def wide(p: Tensor) -> Tensor:
    """Return a detached copy of `p`, in float32 if its precision is lower."""
    return p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
