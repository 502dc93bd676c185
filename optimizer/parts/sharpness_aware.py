"""Base class of sharpness-aware optimizers: second gradient, perturbation radius, shear force."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import checks
from .base import Base, Closure, grad_of, grads_of
from .first_order import FirstOrder
from .radius import START, check_radius, observe_losses, radius
from .sharpness import (
    gradients_at,
    perturb,
    restore,
    shear_force,
    watch_gradients,
    with_shear,
)
from .stored import Storage, restored, stored
from .wrapper import Wrapper

STORED = {"value": "shear_force", "scale": "shear_scale"}  # key of `stored` -> key in `state`


class Pending(NamedTuple):
    """Data that `first_step` passes on to `second_step`."""

    params: list[Tensor]
    base: list[Tensor]  # gradients at the unperturbed weights; empty if `combine` needs none
    gradients: list[Tensor] | None  # the final gradients, if no second gradient is needed
    saved: list[Tensor]  # the unperturbed weights; empty if the weights were not moved


ACCUMULATED = ("the closure added to earlier gradients: for gradient accumulation compute all "
               "micro-batches inside step(closure), or call first_step() and second_step()")


class SharpnessAware(Base):
    """An optimizer whose update uses a gradient taken at perturbed weights.

    Subclasses give `ascend`, and `combine` to change the second gradient before the update. It can
    be called in two ways with the same result:

        loss = optimizer.step(closure)      # the closure clears and computes gradients

        loss.backward()                     # the gradient at the weights
        if optimizer.first_step():          # moves the weights
            loss_fn(model(x), y).backward() # the gradient at the perturbed weights
        optimizer.second_step()             # or optimizer.step(): restores the weights, updates
    """

    pending: Pending | None = None

    def keep_sharpness(self, rho: float, rho_schedule: str, rho_gap: float,
                       shear_storage: str = "full", **scalars: float) -> None:
        """Check and store the options of the radius; store `scalars` together with its state.

        Raises ValueError for an invalid value."""
        check_radius(rho, rho_schedule, rho_gap)
        checks.choice(Storage, shear_storage=shear_storage)
        self.rho, self.rho_schedule, self.rho_gap = rho, rho_schedule, rho_gap
        self.shear_storage = shear_storage
        self.new_shear: dict[Tensor, Tensor] = {}
        self.keep_scalars(**scalars, **START)

    @property
    def radius(self) -> float:
        """The radius rho_t of this step."""
        return radius(self.rho, self.rho_schedule, self.param_groups[0], self.scalars)

    @property
    def diagnostics(self) -> dict[str, float]:
        """The radius rho_t, if it is not constant."""
        varying = {} if self.rho_schedule == "constant" else {"rho": self.radius}
        return {**super().diagnostics, **varying}

    # --- methods for subclasses

    def first_loss(self, closure: Closure) -> Tensor:
        """Leave the gradient at the unperturbed weights in `p.grad`; return the loss there."""
        return closure()

    def ascend(self, params: list[Tensor]) -> tuple[list[Tensor] | None, list[Tensor]]:
        """Return (offsets, gradients to keep for `combine`), computed from `p.grad`.

        offsets: one per parameter, in its shape, or None if this step needs no second gradient:
        then `p.grad` is the final gradient."""
        raise TypeError(f"{type(self).__name__} must define ascend()")

    def combine(self, params: list[Tensor], base: list[Tensor]) -> None:
        """Replace the second gradients in `p.grad` by the final ones; `base` is as `ascend`
        returned it."""

    def look_again(self, params: list[Tensor], base: list[Tensor], closure: Closure) -> None:
        """Hook to take further gradients after `combine`."""

    # --- the two gradients

    def gradient(self, closure: Closure | None) -> Tensor | None:
        """Leave the final gradient in `p.grad`; return the loss at the unperturbed weights.

        Without a closure complete `first_step` and return None. Raises ValueError if a second
        gradient is needed without a closure, or if the closure adds to earlier gradients.
        """
        if closure is None:
            self._without_closure()
            return None
        has_accumulated = watch_gradients(self.param_groups)
        with torch.enable_grad():
            loss = self.first_loss(closure)
        accumulated = has_accumulated()
        del has_accumulated  # it holds a gradient of the previous step
        with torch.no_grad():
            params = self._with_gradients()
            offsets, base = self.ascend(params)
            if offsets is not None:
                if accumulated:
                    raise ValueError(ACCUMULATED)
                self.observe(loss, gradients_at(params, offsets, closure))
                self.combine(params, base)
                self.look_again(params, base, closure)
        return loss

    def observe(self, loss: Tensor, perturbed_loss: Tensor) -> None:
        """Adapt the radius of the schedule "gap" to both losses of a step."""
        if self.rho_schedule == "gap":
            observe_losses(self.scalars, loss, perturbed_loss, self.rho_gap)

    def _with_gradients(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in self.with_gradient(group)]

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> bool:
        """Move the weights to the perturbed point; return whether a second gradient is needed.

        If it is not (a lazy step), `second_step` ignores one. Gradients are always cleared; the
        argument `zero_grad` is for loops written for other implementations of SAM. Raises
        RuntimeError for a second call before `second_step`, ValueError for the radius schedule
        "gap", which needs the losses.
        """
        if self.pending is not None:
            raise RuntimeError("first_step() was called twice: call second_step() in between")
        if self.rho_schedule == "gap":
            raise ValueError('rho_schedule = "gap" needs both losses: use step(closure)')
        params = self._with_gradients()
        offsets, base = self.ascend(params)
        gradients = grads_of(params) if offsets is None else None
        for p in params:
            p.grad = None
        saved = [] if offsets is None else perturb(params, offsets)
        self.pending = Pending(params, base, gradients, saved)
        return gradients is None

    def second_step(self, zero_grad: bool = False) -> None:
        """Complete `first_step` by `step()`; then call `zero_grad()` if `zero_grad`."""
        self.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def _without_closure(self) -> None:
        if self.pending is None:
            self._one_gradient()
            return
        params, base, gradients, saved = self.pending
        self.pending = None
        if gradients is None:
            restore(params, saved)
            self.combine(params, base)
            return
        for p, gradient in zip(params, gradients, strict=True):
            p.grad = gradient

    def _one_gradient(self) -> None:
        """Use `p.grad` as both gradients: valid if `ascend` needs no second one, or if it is zero,
        so that the perturbation is zero too. Raises ValueError otherwise."""
        before, params = dict(self.scalars), self._with_gradients()
        offsets, base = self.ascend(params)
        if offsets is None:
            return
        if not params or any(g.any() for g in grads_of(params)):
            self.scalars.update(before)
            raise ValueError(f"{type(self).__name__} needs a second gradient: use step(closure), "
                             "or first_step() and second_step()")
        self.combine(params, base)

    # --- the shear force

    def keep_shear(self, params: Sequence[Tensor], base: Sequence[Tensor]) -> None:
        """Store the shear force of the second gradients in `p.grad` in place of the last one."""
        self.new_shear.update((p, shear_force(p.grad, g)) for p, g in zip(params, base, strict=True)
                              if p.grad is not None)

    def sheared(self) -> list[Tensor]:
        """Return the parameters that have both a gradient and a shear force."""
        return [p for p in self._with_gradients()
                if p in self.new_shear or "shear_force" in self.state.get(p, {})]

    def shear(self, p: Tensor) -> Tensor:
        """Return the stored shear force of `p`, in the shape and dtype of its gradient."""
        if p in self.new_shear:
            return self.new_shear[p]
        value, scale = (self.state[p].get(name) for name in STORED.values())
        return restored(value, scale, grad_of(p))

    def inject_shear(self, alpha: float) -> None:
        """Add the shear forces to the gradients, as new tensors; the caller's are not modified."""
        sheared = self.sheared()
        injected = with_shear(grads_of(sheared), [self.shear(p) for p in sheared], alpha)
        for p, gradient in zip(sheared, injected, strict=True):
            p.grad = gradient

    def after_step(self) -> None:
        """Store the new shear forces in `state`, after the update: torch's AdamW skips its own
        initialization if a parameter already has state."""
        for p, shear in self.new_shear.items():
            for part, value in stored(shear, self.shear_storage).items():
                self.state[p][STORED[part]] = value
        self.new_shear.clear()
        super().after_step()

    def has_own_dtype(self, key: str) -> bool:
        """Include shear forces stored in fewer bytes."""
        return super().has_own_dtype(key) or (self.shear_storage != "full"
                                              and key in STORED.values())


class SharpnessWrapper(SharpnessAware, Wrapper):
    """A wrapper that gives `base` a sharpness-aware gradient each time it calls its closure.

    Raises ValueError for a sparse gradient, a complex parameter, and a group with maximize=True,
    which would be perturbed towards a lower value."""

    with_gradient = staticmethod(FirstOrder.with_gradient)

    def __init__(self, base: Optimizer, rho: float, rho_schedule: str, rho_gap: float,
                 **scalars: float) -> None:
        super().__init__(base)
        self.refuse_maximize()
        self.keep_sharpness(rho, rho_schedule, rho_gap, "full", **scalars)

    def inner_closure(self, closure: Closure | None) -> Closure | None:
        """Return `gradient` as the closure of `base`; without a closure prepare `p.grad` now."""
        if closure is None:
            self.gradient(None)
            return None
        return partial(self.gradient, closure)
