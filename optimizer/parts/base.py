"""The base of every optimizer here: what torch.optim.Optimizer leaves to its subclasses.

Copies and pickles keep every attribute; numbers of the run (step counts, averages) are part of
`param_groups`, so that any form of checkpoint has them; state is restored exactly.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from .checkpoint import restore_exactly, upgraded

Closure = Callable[..., Any]  # returns the loss, a 0-d tensor; torch.optim's annotation says float


class Base(Optimizer):
    """torch.optim.Optimizer with complete copies, run-level scalars and exact loading."""

    scalars_key: str | None = None
    old_key = "scalars"  # where checkpoints of version 0.1 had what this optimizer remembered

    def __init__(self, params: Iterable, defaults: dict) -> None:
        groups = params if isinstance(params, list) else []
        for settings in (defaults, *(group for group in groups if isinstance(group, dict))):
            if torch.is_tensor(lr := settings.get("lr")) and lr.ndim and lr.numel() == 1:
                settings["lr"] = lr.reshape(())  # the same memory; products keep the shape of p
        super().__init__(params, defaults)

    def keep_scalars(self, **initial: float) -> None:
        """Keep numbers of the run as `self.scalars`, and in every checkpoint."""
        self.scalars_key, self.initial_scalars = type(self).__name__, initial
        kept = self.param_groups[0].setdefault("scalars", {})
        while self.scalars_key in kept:  # SAM around SAM
            self.scalars_key += "'"
        kept[self.scalars_key] = dict(initial)

    @property
    def scalars(self) -> dict[str, Any]:
        """The numbers of `keep_scalars`, to be changed in place."""
        return self.param_groups[0]["scalars"][self.scalars_key]

    @property
    def diagnostics(self) -> dict[str, float]:
        """Numbers worth logging; none unless a rule has something to say."""
        return {}

    @staticmethod
    def with_gradient(group: dict) -> list[Tensor]:
        """The parameters of `group` that have a gradient, but for empty ones."""
        return [p for p in group["params"] if p.grad is not None and p.numel()]

    def after_step(self) -> None:
        """What a subclass does after each update; gradients are still there."""

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore exactly what `state_dict` returned, as copies: also state wider than its
        parameter; what a narrower model had gets the parameter's dtype. Checkpoints of version
        0.1 are read too.

        (torch rounds such state to the parameter's dtype, and otherwise keeps the tensors given.)
        """
        loaded: dict = {}

        def before(_: Optimizer, given: dict) -> dict:
            loaded.update(upgraded(given, self.old_key, self.scalars_key))
            return loaded

        def after(_: Optimizer) -> None:
            self.restore(loaded)

        # Ours run next to torch's own loading, so that hooks of others see it complete.
        hooks = [self.register_load_state_dict_pre_hook(before),
                 self.register_load_state_dict_post_hook(after, prepend=True)]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def restore(self, loaded: dict) -> None:
        """Finish loading: exact state, scalars that the checkpoint lacks, `after_loading`."""
        restore_exactly(self, loaded, self.has_own_dtype)
        if self.scalars_key is not None:
            kept = self.param_groups[0].setdefault("scalars", {})
            kept[self.scalars_key] = {**self.initial_scalars, **kept.get(self.scalars_key, {})}
        self.after_loading()

    def has_own_dtype(self, key: str) -> bool:
        """Whether this entry of a parameter's state may be narrower than the parameter; if not, one
        from a narrower model is widened when it is loaded."""
        return key == "step"

    def after_loading(self) -> None:
        """What a subclass does once groups and state have been replaced."""

    def __getstate__(self) -> dict:
        """Every attribute, but for hooks (as in torch) and what a scheduler patched."""
        return {key: value for key, value in self.__dict__.items()
                if key != "step" and not key.startswith("_optimizer_")}


def grad_of(p: Tensor) -> Tensor:
    """The gradient of a tensor that has one, as those of `with_gradient`."""
    assert p.grad is not None
    return p.grad


def grads_of(params: Iterable[Tensor]) -> list[Tensor]:
    """The gradients of tensors that all have one, as those of `with_gradient`."""
    return [grad_of(p) for p in params]


def inner_step(optimizer: Optimizer, closure: Closure | None = None) -> Any:
    """A step of an optimizer inside another: hooks registered for all optimizers
    (`register_optimizer_step_pre_hook`) run for the outer one alone. What it returns."""
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
    """Call `train` or `eval` of an optimizer that has two sets of weights (schedule-free ones,
    arXiv 2405.15682), and of those that it wraps; others have no such method."""
    getattr(optimizer, mode, lambda: None)()
    for part in _inside(optimizer):
        set_mode(part, mode)
    getattr(optimizer, "after_mode", lambda: None)()


def evaluated_weights(optimizer: Optimizer) -> str | None:
    """The class whose `eval` puts weights of its own into the model; None if those that are trained
    are evaluated, as before an average has begun."""
    inner = switching(optimizer)
    return type(inner).__name__ if inner and getattr(inner, "has_average", True) else None


def switching(optimizer: Optimizer) -> Optimizer | None:
    """The optimizer, of those inside, that has other weights to evaluate than to train."""
    if callable(getattr(optimizer, "eval", None)):
        return optimizer
    return next(filter(None, map(switching, _inside(optimizer))), None)


def _inside(optimizer: Optimizer) -> list[Optimizer]:
    base = [optimizer.base] if hasattr(optimizer, "base") else []
    return [*base, *getattr(optimizer, "parts", ())]
