"""The base of optimizers that wrap another: SAM and its kin, Lookahead."""

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.optim import Optimizer


class Wrapper(Optimizer):
    """An optimizer around `base`, sharing its param_groups, its state and its state_dict.

    A wrapper's first argument is named `base`: that is how the configuration knows it for one.
    Raises TypeError if `base` is no optimizer.
    """

    def __init__(self, base: Optimizer) -> None:
        if not isinstance(base, Optimizer):
            raise TypeError(f"{type(self).__name__} wraps an optimizer, got {type(base).__name__}")
        self.base = base
        super().__init__(base.param_groups, {})
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state

    @property
    def diagnostics(self) -> dict[str, float]:
        """What the wrapped optimizer has to say."""
        return getattr(self.base, "diagnostics", {})

    def add_param_group(self, group: dict) -> None:
        """Add a group to the wrapped optimizer."""
        if "state" in self.__dict__ and self.state is self.base.state:
            self.base.add_param_group(group)
        else:  # torch's constructor lists the groups that the base has already
            self.param_groups.append(group)

    def get_extra_state(self) -> dict:
        """What the wrapper itself must remember; empty unless a subclass has something."""
        return {}

    def set_extra_state(self, state: dict) -> None:
        """Put back what `get_extra_state` returned."""

    def state_dict(self) -> dict:
        """The wrapped optimizer's, and beside it the wrapper's own under its class name."""
        return {**self.base.state_dict(), type(self).__name__: self.get_extra_state()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore the wrapped optimizer and the wrapper; share groups and state again."""
        self.base.load_state_dict(state_dict)
        self._share()
        self.set_extra_state(state_dict[type(self).__name__])

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters, in the order of the groups."""
        return [p for group in self.param_groups for p in group["params"]]


class ClosureWrapper(Wrapper):
    """A wrapper that changes the gradient `base` is given: subclasses give `gradient(closure)`."""

    def gradient(self, closure: Callable[[], Tensor]) -> Tensor:
        """Leave in p.grad what `base` shall see; the loss at the unperturbed weights."""
        raise TypeError(f"{type(self).__name__} defines no gradient")

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One step of `base`; the loss at the weights before it. ValueError without a closure."""
        if closure is None:
            raise ValueError(f"{type(self).__name__} needs a closure: step(closure)")
        return self.base.step(partial(self.gradient, closure))
