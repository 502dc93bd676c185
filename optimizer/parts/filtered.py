"""Gradient filters: functions that change the final gradient of a step before the rule uses it."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from .base import Closure
from .delta import in_scope
from .first_order import FirstOrder, refuse_sparse
from .wrapper import Wrapper, wrappers_of

GradientFilter = Callable[[Optimizer], None]


def with_filter(optimizer: Optimizer, gradient_filter: GradientFilter) -> Optimizer:
    """Make `optimizer` call `gradient_filter(optimizer)` once per step, when `p.grad` holds the
    gradient of the update. Return it, in a `Filtered` wrapper if the class is not one of ours.

    A sharpness-aware rule filters its combined gradient; the perturbation uses the unfiltered one.
    Inside `Sharded` each process filters the gradients of the parameters it owns.
    Raises ValueError for a rule that compares gradients with losses.
    """
    if isinstance(optimizer, LBFGS) or getattr(optimizer, "compares_losses", False):
        raise ValueError(f"{type(optimizer).__name__} compares gradients with losses, so it cannot "
                         "use a gradient filter such as clip_norm")
    if not isinstance(optimizer, FirstOrder):
        return Filtered(optimizer, gradient_filter)
    later = optimizer.gradient_filter
    optimizer.gradient_filter = gradient_filter if later is None else partial(
        _in_turn, gradient_filter, later)
    return optimizer


class Filtered(Wrapper):
    """Wraps a rule of torch.optim or a library and filters the gradients after its closure."""

    def __init__(self, base: Optimizer, gradient_filter: GradientFilter) -> None:
        super().__init__(base)
        self.gradient_filter = gradient_filter

    def inner_closure(self, closure: Closure | None) -> Closure | None:
        """Return a closure that also filters; without a closure filter now."""
        if closure is None:
            self.filter()
            return None

        def filtered() -> Tensor:
            loss = closure()
            self.filter()
            return loss

        return filtered

    @torch.no_grad()
    def filter(self) -> None:
        """Filter the gradients in `p.grad`."""
        self.gradient_filter(self)


class FilterWrapper(Wrapper):
    """A gradient filter with one state tensor per parameter, in the form of a wrapper. Subclasses
    give `filtered`, and in `state_keys` the key of that tensor.

    The filter runs at the innermost rule, wherever the wrapper is placed. With several filters the
    outermost wrapper filters first; gradient clipping is last. Raises ValueError as `with_filter`
    does, and for sparse gradients.
    """

    stage = "gradient filter"
    scope = "all"

    def __init__(self, base: Optimizer) -> None:
        self.fresh: dict[Tensor, Tensor] = {}  # new state tensors, stored after the step
        super().__init__(_at_the_rule(base, self.filter))

    def filtered(self, g: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (gradient for the rule, new memory) without changing the arguments in place.

        g and memory have the parameter's shape, in float32 or wider; memory is None at first."""
        raise TypeError(f"{type(self).__name__} must define filtered()")

    @torch.compiler.disable
    @torch.no_grad()
    def filter(self, _: Optimizer) -> None:
        """Replace `p.grad` by new tensors; the caller's gradient tensors are not modified."""
        for group in self.param_groups:
            scoped = in_scope(group, self.scope)
            refuse_sparse(scoped)
            for p in scoped:
                if p.grad is not None and p.numel():
                    memory = self.state.get(p, {}).get(self.state_keys[0])
                    g = p.grad.to(torch.promote_types(p.grad.dtype, torch.float32))
                    g, new = self.filtered(g, memory)
                    p.grad = g.to(p.grad.dtype)
                    if memory is None:
                        self.fresh[p] = new.clone()
                    else:
                        memory.copy_(new)

    @torch.compiler.disable
    def after_step(self) -> None:
        """Store new state tensors after the step: torch's rules skip their own initialization if
        a parameter already has state."""
        for p, memory in self.fresh.items():
            self.state[p][self.state_keys[0]] = memory
        self.fresh.clear()


def _at_the_rule(base: Optimizer, gradient_filter: GradientFilter) -> Optimizer:
    """Return `base` with the filter added at its innermost rule, before the filters there."""
    *_, innermost = None, *wrappers_of(base)
    if isinstance(innermost, Filtered):
        innermost.gradient_filter = partial(_in_turn, gradient_filter, innermost.gradient_filter)
        return base
    rule = base if innermost is None else innermost.base
    filtered = with_filter(rule, gradient_filter)
    if innermost is None:
        return filtered
    innermost.base = filtered
    return base


def _in_turn(first: GradientFilter, second: GradientFilter, optimizer: Optimizer) -> None:
    first(optimizer)
    second(optimizer)
