"""Base class of optimizers that wrap another: SAM and its variants, Lookahead, QK-Clip, changes of
an update, weight averages."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .base import Base, Closure, inner_step
from .checkpoint import upgraded

# Stages of wrappers, innermost first: the required order of several wrappers around one rule.
ORDER = ("gradient filter", "update mask", "update length", "projection", "decay", "learning rate",
         "outer step", "average")


class Wrapper(Base):
    """An optimizer around `base` that shares its param_groups, its state and its state_dict.

    The first constructor argument of a wrapper must be named `base`: a config recognizes wrappers
    by it. stage: its place in ORDER; None is allowed anywhere.
    Raises TypeError if `base` is not an optimizer, ValueError if it contains a wrapper of a later
    stage, or an optimizer that has one of this wrapper's `state_keys`: names of state tensors.
    """

    stage: str | None = None
    state_keys: tuple[str, ...] = ()

    def __init__(self, base: Optimizer) -> None:
        if not isinstance(base, Optimizer):
            raise TypeError(f"{type(self).__name__} wraps an optimizer, got {type(base).__name__}")
        self._require_order(base)
        self._require_own_keys(base)
        self.base = base
        self.old_key = type(self).__name__
        super().__init__(base.param_groups, base.defaults)  # schedulers read momentum in defaults
        self._share()

    def _require_order(self, base: Optimizer) -> None:
        for inner in wrappers_of(base) if self.stage else ():
            if inner.stage and ORDER.index(inner.stage) > ORDER.index(self.stage):
                raise ValueError(
                    f"{type(self).__name__} ({self.stage}) must be inside {type(inner).__name__} "
                    f"({inner.stage}): the order, innermost first, is {', '.join(ORDER)}")

    def _require_own_keys(self, base: Optimizer) -> None:
        inner: Optimizer | None = base
        while inner is not None:
            if both := set(self.state_keys) & set(getattr(inner, "state_keys", ())):
                raise ValueError(f"{type(self).__name__} and {type(inner).__name__} both store "
                                 f"{min(both)!r} in the state: use only one of them")
            inner = getattr(inner, "base", None)

    def _share(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def refuse_maximize(self) -> None:
        """Raise ValueError for a group with maximize=True: for wrappers that use the gradient's
        sign."""
        if any(group.get("maximize") for group in self.param_groups):
            raise ValueError(f"{type(self).__name__} minimizes: negate the loss instead of "
                             "maximize=True")

    @property
    def diagnostics(self) -> dict[str, float]:
        """The diagnostics of the wrapped optimizer."""
        return getattr(self.base, "diagnostics", {})

    def inner_closure(self, closure: Closure | None) -> Closure | None:
        """Return the closure to pass to `base`; None to step without a closure."""
        return closure

    def step(self, closure: Closure | None = None) -> Any:
        """Take one step of `base`, call `after_step`, and return what `base` returns."""
        loss = inner_step(self.base, self.inner_closure(closure))
        with torch.no_grad():
            self.after_step()
        return loss

    def first_step(self, zero_grad: bool = False) -> bool:
        """Call `first_step` of the sharpness-aware optimizer inside. Raises TypeError if there is
        none: a second gradient would be added to the first."""
        if not hasattr(self.base, "first_step"):
            raise TypeError(f"{type(self.base).__name__} uses one gradient per step: call step()")
        return self.base.first_step(zero_grad)

    def second_step(self, zero_grad: bool = False) -> None:
        """Complete `first_step` by `step()`; then call `zero_grad()` if `zero_grad`."""
        self.step()
        if zero_grad:
            self.zero_grad()

    def add_param_group(self, group: dict) -> None:
        """Add a group to the wrapped optimizer."""
        if "state" in self.__dict__ and self.state is self.base.state:
            self.base.add_param_group(group)
        else:  # called by torch's constructor, for a group that `base` already has
            self.param_groups.append(group)

    def packed(self) -> dict:
        """Return the state_dict of `base`, which includes this wrapper's state."""
        return self.base.state_dict()

    def state_dict(self) -> dict:
        """Return the state_dict of the wrapped optimizer, in torch's format."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state_dict = self.packed()
        for after in self._optimizer_state_dict_post_hooks.values():
            replaced = after(self, state_dict)
            state_dict = state_dict if replaced is None else replaced
        return state_dict

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore the wrapped optimizer and the wrapper; share groups and state again."""
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            replaced = before(self, state_dict)
            state_dict = state_dict if replaced is None else replaced
        state_dict = upgraded(state_dict, self.old_key, self.scalars_key)
        self.base.load_state_dict(state_dict)
        self._share()
        self.restore(state_dict)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters, in the order of the groups."""
        return [p for group in self.param_groups for p in group["params"]]


def wrappers_of(optimizer: Optimizer) -> Iterator[Wrapper]:
    """Yield the wrappers around a rule, outermost first."""
    while isinstance(optimizer, Wrapper):
        yield optimizer
        optimizer = optimizer.base
