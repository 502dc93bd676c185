"""The base class of every optimizer in this package, on top of torch.optim.Optimizer.

Copies and pickles keep every attribute. Run-level numbers (step counts, averages) are stored in
`param_groups`, so every form of checkpoint contains them. Loading restores state exactly.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from .checkpoint import restore_exactly, upgraded

Closure = Callable[..., Any]  # returns the loss as a 0-d tensor (torch.optim annotates float)


class Base(Optimizer):
    """torch.optim.Optimizer with complete copies, run-level scalars and exact loading."""

    scalars_key: str | None = None
    old_key = "scalars"  # the key under which checkpoints of version 0.1 stored this state

    def __init__(self, params: Iterable, defaults: dict) -> None:
        groups = params if isinstance(params, list) else []
        for settings in (defaults, *(group for group in groups if isinstance(group, dict))):
            if torch.is_tensor(lr := settings.get("lr")) and lr.ndim and lr.numel() == 1:
                settings["lr"] = lr.reshape(())  # shares memory; lr * p then has the shape of p
        super().__init__(params, defaults)

    def keep_scalars(self, **initial: float) -> None:
        """Store run-level numbers in `self.scalars`, which is part of every checkpoint."""
        self.scalars_key, self.initial_scalars = type(self).__name__, initial
        stored = self.param_groups[0].setdefault("scalars", {})
        while self.scalars_key in stored:  # SAM around SAM
            self.scalars_key += "'"
        stored[self.scalars_key] = dict(initial)

    @property
    def scalars(self) -> dict[str, Any]:
        """The numbers stored by `keep_scalars`; update this dict in place."""
        return self.param_groups[0]["scalars"][self.scalars_key]

    @property
    def diagnostics(self) -> dict[str, float]:
        """Numbers to log with each evaluation; empty by default."""
        return {}

    @staticmethod
    def with_gradient(group: dict) -> list[Tensor]:
        """Return the nonempty parameters of `group` that have a gradient."""
        return [p for p in group["params"] if p.grad is not None and p.numel()]

    def after_step(self) -> None:
        """Hook that runs after each update; gradients are still available."""

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore a `state_dict` exactly, by copies; checkpoints of version 0.1 load too.

        State in a wider dtype than its parameter keeps that dtype; state from a narrower model is
        cast to the parameter's dtype. (torch casts floating-point state to the parameter's dtype
        and does not copy tensors that already have it.)
        """
        loaded: dict = {}

        def before(_: Optimizer, given: dict) -> dict:
            loaded.update(upgraded(given, self.old_key, self.scalars_key))
            return loaded

        def after(_: Optimizer) -> None:
            self.restore(loaded)

        # Run directly before and after torch's loading: other hooks see the loading complete.
        hooks = [self.register_load_state_dict_pre_hook(before),
                 self.register_load_state_dict_post_hook(after, prepend=True)]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def restore(self, loaded: dict) -> None:
        """Finish loading: restore state exactly, default missing scalars, call `after_loading`."""
        restore_exactly(self, loaded, self.has_own_dtype)
        if self.scalars_key is not None:
            stored = self.param_groups[0].setdefault("scalars", {})
            stored[self.scalars_key] = {**self.initial_scalars, **stored.get(self.scalars_key, {})}
        self.after_loading()

    def has_own_dtype(self, key: str) -> bool:
        """Whether state entry `key` may have a narrower dtype than its parameter, here or in an
        optimizer inside. Loading casts other entries of a narrower dtype to the parameter's."""
        return key == "step" or any(inner.has_own_dtype(key) for inner in _inside(self)
                                    if isinstance(inner, Base))

    def after_loading(self) -> None:
        """Hook that runs after loading has replaced `param_groups` and `state`."""

    def __getstate__(self) -> dict:
        """Return every attribute except hooks (as torch does) and a scheduler's patched `step`."""
        return {key: value for key, value in self.__dict__.items()
                if key != "step" and not key.startswith("_optimizer_")}


def grad_of(p: Tensor) -> Tensor:
    """Return the gradient of `p`, which must have one."""
    assert p.grad is not None
    return p.grad


def grads_of(params: Iterable[Tensor]) -> list[Tensor]:
    """Return the gradients of `params`, which must all have one."""
    return [grad_of(p) for p in params]


def inner_step(optimizer: Optimizer, closure: Closure | None = None) -> Any:
    """Call `optimizer.step` inside another optimizer's step and return its result. Global hooks
    (`register_optimizer_step_pre_hook`, `..._post_hook`) run for the outer optimizer only."""
    arguments = () if closure is None else (closure,)
    registries: tuple[dict[int, Any], ...] = (
        _global_optimizer_pre_hooks, _global_optimizer_post_hooks)
    if not any(registries):
        return optimizer.step(*arguments)
    suspended = [dict(hooks) for hooks in registries]
    for hooks in registries:
        hooks.clear()
    try:
        return optimizer.step(*arguments)
    finally:
        for hooks, entries in zip(registries, suspended, strict=True):
            hooks.update(entries)


def set_mode(optimizer: Optimizer, mode: Literal["train", "eval"]) -> None:
    """Call `train` or `eval` on the optimizer and on those inside it, where they have that method.

    Optimizers with separate weights for evaluation have it (Schedule-Free, arXiv 2405.15682)."""
    getattr(optimizer, mode, lambda: None)()
    for part in _inside(optimizer):
        set_mode(part, mode)
    getattr(optimizer, "after_mode", lambda: None)()


def evaluated_weights(optimizer: Optimizer) -> str | None:
    """Return the name of the class whose `eval` puts other weights into the model. None if the
    trained weights are evaluated, for example before an average has started."""
    inner = switching(optimizer)
    return type(inner).__name__ if inner and getattr(inner, "has_average", True) else None


def switching(optimizer: Optimizer) -> Optimizer | None:
    """Return the first optimizer, from the outside in, that has an `eval` method; None if none."""
    if callable(getattr(optimizer, "eval", None)):
        return optimizer
    return next(filter(None, map(switching, _inside(optimizer))), None)


def _inside(optimizer: Optimizer) -> list[Optimizer]:
    base = [optimizer.base] if hasattr(optimizer, "base") else []
    return [*base, *getattr(optimizer, "parts", ())]
