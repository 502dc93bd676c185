"""Base class of update rules: check the gradients, then call `update_group` for each group."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .base import Base, Closure
from .library import required

BOOKKEEPING = ("params", "param_names", "track", "initial_lr", "scalars", "fused")


class FirstOrder(Base):
    """Base class of update rules. Subclasses give `update_group(params, group)`, which updates in
    place the parameters that have a gradient.

    gradient_filter: called with the optimizer before each update (see parts/filtered.py).
    Raises ValueError for a group with an unknown key, or with a value that the constructor refuses.
    """

    gradient_filter: Callable[[Optimizer], None] | None = None

    def add_param_group(self, group: dict) -> None:
        """Add a group. Raises ValueError for an unknown key or an invalid value."""
        refuse_unknown(group, self.defaults, f"a group of {type(self).__name__}")
        options = {key: value for key, value in group.items() if key in self.defaults}
        arguments = inspect.signature(type(self)).parameters
        given = {key: value for key, value in {**self.defaults, **options}.items()
                 if key in arguments}
        if options and set(required(type(self))) <= given.keys():
            if "model" in arguments:
                given["model"] = nn.Module()
            type(self)([nn.Parameter(torch.zeros(1, 1))], **given)  # for the constructor's checks
        super().add_param_group(group)

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Update in place the tensors `params` of `group`, which all have a dense gradient."""
        raise TypeError(f"{type(self).__name__} must define update_group()")

    def gradient(self, closure: Closure | None) -> Tensor | None:
        """Leave the gradient of the update in `p.grad`; return the closure's first loss."""
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    def step(self, closure: Closure | None = None) -> Any:
        """Take one step; return the loss of the closure's first call, None without a closure."""
        loss = self.gradient(closure)
        with torch.no_grad():
            if self.gradient_filter is not None:
                self.gradient_filter(self)
            self.update()
            self.after_step()
        return loss

    def update(self) -> None:
        """Apply the gradients in `p.grad`; parameters without a gradient do not change."""
        for group in self.param_groups:
            params = self.with_gradient(group)
            if params:
                self.update_group(params, group)

    @staticmethod
    def with_gradient(group: dict) -> list[Tensor]:
        """Return the nonempty parameters of `group` that have a gradient. Raises ValueError for a
        sparse gradient or a complex parameter."""
        params = Base.with_gradient(group)
        refuse_sparse(params)
        if any(p.is_complex() for p in params):
            raise ValueError("complex parameters are not supported")
        return params

    def buffers(self, params: list[Tensor], name: str) -> list[Tensor]:
        """Return the state tensor `name` of each parameter, created as zeros of its shape, in
        float32 for half-precision parameters."""
        for p in params:
            if name not in self.state[p]:
                dtype = p.dtype if p.dtype == torch.float64 else torch.float32
                self.state[p][name] = torch.zeros_like(p, dtype=dtype)
        return [self.state[p][name] for p in params]

    def after_loading(self) -> None:
        """Convert step counts to int: a checkpoint may hold them as floats or tensors."""
        for group in self.param_groups:
            for p in group["params"] if group.get("track") != "adamw" else ():
                if "step" in self.state.get(p, {}):
                    self.state[p]["step"] = int(self.state[p]["step"])


def refuse_unknown(group: dict, accepted: Iterable[str], where: str) -> None:
    """Raise ValueError for a key of `group` that is neither accepted nor in BOOKKEEPING."""
    for key in group:
        if key not in accepted and key not in BOOKKEEPING:
            raise ValueError(f"unknown key {key!r} in {where}; accepted: {sorted(accepted)}")


def refuse_sparse(params: list[Tensor]) -> None:
    """Raise ValueError if the gradient of a parameter is sparse."""
    if any(p.grad is not None and p.grad.is_sparse for p in params):
        raise ValueError("sparse gradients are not supported: use sparse=False")
