"""Gradient filters: what happens to the final gradient of a step, before the rule sees it."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from .first_order import FirstOrder
from .wrapper import Wrapper

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
    optimizer.gradient_filter = gradient_filter
    return optimizer


class Filtered(Wrapper):
    """`base`, a rule of torch.optim or a library, with a filter between its closure and itself."""

    def __init__(self, base: Optimizer, gradient_filter: GradientFilter) -> None:
        super().__init__(base)
        self.gradient_filter = gradient_filter

    def inner_closure(self, closure: Callable[[], Tensor] | None) -> Callable[[], Tensor] | None:
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
