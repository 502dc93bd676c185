"""The base of optimizers that wrap another: SAM and its kin, Lookahead, QK-Clip, the hooks around a
rule's move, averages."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .base import Base, Closure, inner_step
from .checkpoint import upgraded

# Kinds of wrappers, the innermost first: the order in which several of them go around one rule.
ORDER = ("gradient filter", "update mask", "update length", "projection", "decay", "learning rate",
         "outer step", "average")


class Wrapper(Base):
    """An optimizer around `base`, sharing its param_groups, its state and its state_dict.

    The first argument of a wrapper is named `base`: that is how a configuration recognizes one.
    stage: its place in ORDER; None goes anywhere.
    Raises TypeError if `base` is not an optimizer, ValueError if it holds a wrapper of a later
    stage.
    """

    stage: str | None = None

    def __init__(self, base: Optimizer) -> None:
        if not isinstance(base, Optimizer):
            raise TypeError(f"{type(self).__name__} wraps an optimizer, got {type(base).__name__}")
        self._require_order(base)
        self.base = base
        self.old_key = type(self).__name__
        super().__init__(base.param_groups, base.defaults)  # by which schedulers cycle momentum
        self._share()

    def _require_order(self, base: Optimizer) -> None:
        for inner in wrappers_of(base) if self.stage else ():
            if inner.stage and ORDER.index(inner.stage) > ORDER.index(self.stage):
                raise ValueError(
                    f"{type(self).__name__} ({self.stage}) goes inside {type(inner).__name__} "
                    f"({inner.stage}): the order, innermost first, is {', '.join(ORDER)}")

    def _share(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state

    @property
    def diagnostics(self) -> dict[str, float]:
        """The diagnostics of the wrapped optimizer."""
        return getattr(self.base, "diagnostics", {})

    def inner_closure(self, closure: Closure | None) -> Closure | None:
        """The closure that `base` is given; None for a step of `base` without one."""
        return closure

    def step(self, closure: Closure | None = None) -> Any:
        """One step of `base`, then `after_step`; what `base` returns."""
        loss = inner_step(self.base, self.inner_closure(closure))
        with torch.no_grad():
            self.after_step()
        return loss

    def first_step(self, zero_grad: bool = False) -> bool:
        """`first_step` of the sharpness-aware optimizer inside. Raises TypeError where there is
        none: a second gradient would be added to the first."""
        if not hasattr(self.base, "first_step"):
            raise TypeError(f"{type(self.base).__name__} takes one gradient a step: call step()")
        return self.base.first_step(zero_grad)

    def second_step(self, zero_grad: bool = False) -> None:
        """The step after `first_step`: `step()`, then `zero_grad()` if asked for."""
        self.step()
        if zero_grad:
            self.zero_grad()

    def add_param_group(self, group: dict) -> None:
        """Add a group to the wrapped optimizer."""
        if "state" in self.__dict__ and self.state is self.base.state:
            self.base.add_param_group(group)
        else:  # torch's constructor lists the groups that the base has already
            self.param_groups.append(group)

    def packed(self) -> dict:
        """The state_dict of `base`, which includes what this wrapper keeps."""
        return self.base.state_dict()

    def state_dict(self) -> dict:
        """The state_dict of the wrapped optimizer, in torch's format."""
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
    """The wrappers around a rule, the outermost first; none for a rule alone."""
    while isinstance(optimizer, Wrapper):
        yield optimizer
        optimizer = optimizer.base
