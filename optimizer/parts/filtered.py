"""Gradient filters: what happens to the final gradient of a step, before the rule sees it."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from .base import Closure
from .delta import in_scope
from .first_order import FirstOrder
from .wrapper import Wrapper, wrappers_of

GradientFilter = Callable[[Optimizer], None]


def with_filter(optimizer: Optimizer, gradient_filter: GradientFilter) -> Optimizer:
    """`optimizer`, which calls `gradient_filter(optimizer)` once a step, when the gradient that it
    updates by stands in `p.grad`: of sharpness-aware rules the combined one, of which the
    perturbation knows nothing. Inside `Sharded` each process has the gradients that it owns.

    Raises ValueError for a rule that compares gradients of one step with its losses.
    """
    if isinstance(optimizer, LBFGS) or getattr(optimizer, "compares_losses", False):
        raise ValueError(f"{type(optimizer).__name__} compares gradients with losses: a filtered "
                         "gradient is not that of the loss")
    if not isinstance(optimizer, FirstOrder):
        return Filtered(optimizer, gradient_filter)
    later = optimizer.gradient_filter
    optimizer.gradient_filter = gradient_filter if later is None else partial(
        _in_turn, gradient_filter, later)
    return optimizer


class Filtered(Wrapper):
    """`base`, a rule of torch.optim or a library, with a filter between its closure and itself."""

    def __init__(self, base: Optimizer, gradient_filter: GradientFilter) -> None:
        super().__init__(base)
        self.gradient_filter = gradient_filter

    def inner_closure(self, closure: Closure | None) -> Closure | None:
        """`closure`, and then the filter; without one the filter runs now."""
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
    """A filter with a memory of each parameter, as a wrapper: subclasses give `filtered`, and the
    name that the memory has in `state`.

    It works at the innermost rule, wherever it stands: the last wrapper filters first, clipping
    last. Raises ValueError as `with_filter`.
    """

    stage = "gradient filter"
    scope = "all"
    memory = "filter_memory"

    def __init__(self, base: Optimizer) -> None:
        self.fresh: dict[Tensor, Tensor] = {}  # memories of parameters without any yet
        super().__init__(_at_the_rule(base, self.filter))

    def filtered(self, g: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """(gradient for the rule, new memory) from the gradient, and the memory of its parameter,
        None at first; both in float32 at least. Neither is changed in place."""
        raise TypeError(f"{type(self).__name__} defines no filtered")

    @torch.compiler.disable
    @torch.no_grad()
    def filter(self, _: Optimizer) -> None:
        """Replace the gradients in `p.grad`, as new tensors: the caller's are kept."""
        for group in self.param_groups:
            for p in in_scope(group, self.scope):
                if p.grad is not None and p.numel():
                    memory = self.state.get(p, {}).get(self.memory)
                    g = p.grad.to(torch.promote_types(p.grad.dtype, torch.float32))
                    g, new = self.filtered(g, memory)
                    p.grad = g.to(p.grad.dtype)
                    if memory is None:
                        self.fresh[p] = new.clone()
                    else:
                        memory.copy_(new)

    @torch.compiler.disable
    def after_step(self) -> None:
        """Keep new memories: only now, torch takes any state for an initialized one."""
        for p, memory in self.fresh.items():
            self.state[p][self.memory] = memory
        self.fresh.clear()


def _at_the_rule(base: Optimizer, gradient_filter: GradientFilter) -> Optimizer:
    """`base` with the filter at the rule inside, before other filters there."""
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
