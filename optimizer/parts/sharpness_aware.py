"""The base of sharpness-aware optimizers: the second gradient, the radius and the shear force."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import checks
from .base import Base, Closure, grad_of, grads_of
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

STORED = {"value": "shear_force", "scale": "shear_scale"}  # part of a stored tensor: key in `state`


class Pending(NamedTuple):
    """What `first_step` leaves for the step after it."""

    params: list[Tensor]
    base: list[Tensor]  # gradients at the weights, where `combine` needs them
    gradients: list[Tensor] | None  # the final ones, where no second gradient is needed
    saved: list[Tensor]  # the weights, where they have been moved


ACCUMULATED = ("the closure added to earlier gradients: for gradient accumulation compute all "
               "micro-batches inside step(closure), or call first_step() and second_step()")


class SharpnessAware(Base):
    """An optimizer that updates by a gradient taken at perturbed weights.

    Subclasses give `ascend`, and `combine` where the second gradient is not used as it is. Two
    forms with the same result:

        loss = optimizer.step(closure)      # the closure clears and computes gradients

        loss.backward()                     # the gradient at the weights
        if optimizer.first_step():          # moves the weights
            loss_fn(model(x), y).backward() # the gradient at the perturbed weights
        optimizer.second_step()             # or optimizer.step(): restores the weights, updates
    """

    pending: Pending | None = None

    def keep_sharpness(self, rho: float, rho_schedule: str, rho_gap: float,
                       shear_storage: str = "full", **scalars: float) -> None:
        """Check and keep the radius, and `scalars` beside what it learns. Raises ValueError."""
        check_radius(rho, rho_schedule, rho_gap)
        checks.choice(Storage, shear_storage=shear_storage)
        self.rho, self.rho_schedule, self.rho_gap = rho, rho_schedule, rho_gap
        self.shear_storage = shear_storage
        self.new_shear: dict[Tensor, Tensor] = {}
        self.keep_scalars(**scalars, **START)

    @property
    def radius(self) -> float:
        """rho_t of this step."""
        return radius(self.rho, self.rho_schedule, self.param_groups[0], self.scalars)

    @property
    def diagnostics(self) -> dict[str, float]:
        """rho_t where it is not constant."""
        own = {} if self.rho_schedule == "constant" else {"rho": self.radius}
        return {**super().diagnostics, **own}

    # --- what a subclass decides

    def first_loss(self, closure: Closure) -> Tensor:
        """Leave the gradient at the weights in `p.grad`; the loss there."""
        return closure()

    def ascend(self, params: list[Tensor]) -> tuple[list[Tensor] | None, list[Tensor]]:
        """(offsets, gradients to keep for `combine`) from the gradients in `p.grad`; offsets None
        where this step needs no second gradient: `p.grad` is then the final one."""
        raise TypeError(f"{type(self).__name__} defines no ascend")

    def combine(self, params: list[Tensor], base: list[Tensor]) -> None:
        """Replace the second gradients in `p.grad` by the final ones; `base`: as kept."""

    def look_again(self, params: list[Tensor], base: list[Tensor], closure: Closure) -> None:
        """Take further gradients after `combine`; none here."""

    # --- the two gradients

    def gradient(self, closure: Closure | None) -> Tensor | None:
        """Leave the final gradient in `p.grad`; the loss at the weights, None without a closure.

        Without a closure this completes `first_step`. Raises ValueError where a second gradient
        is needed and there is no closure to compute it.
        """
        if closure is None:
            self._without_closure()
            return None
        kept_gradients = watch_gradients(self.param_groups)
        with torch.enable_grad():
            loss = self.first_loss(closure)
        accumulated = kept_gradients()
        del kept_gradients  # it holds a gradient of the step before
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
        """Adapt the radius to both losses of a step."""
        if self.rho_schedule == "gap":
            observe_losses(self.scalars, loss, perturbed_loss, self.rho_gap)

    def _with_gradients(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in self.with_gradient(group)]

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> bool:
        """Move the weights to the perturbed point; whether a second gradient is needed there.

        Where it is not (a lazy step), `second_step` ignores one. Gradients are cleared in any
        case; `zero_grad` is there for loops written for other implementations of SAM.
        Raises RuntimeError for a second call before `second_step`, ValueError for the radius
        schedule "gap", which needs the losses.
        """
        if self.pending is not None:
            raise RuntimeError("first_step was called twice: second_step comes in between")
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
        """The step after `first_step`: `step()`, then `zero_grad()` if asked for."""
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
        """Use the gradient in `p.grad` for both: right where `ascend` asks for no other, and
        where it is zero, which no perturbation follows."""
        before, params = dict(self.scalars), self._with_gradients()
        offsets, base = self.ascend(params)
        if offsets is None:
            return
        if not params or any(g.any() for g in grads_of(params)):
            self.scalars.update(before)
            raise ValueError(f"{type(self).__name__} needs a second gradient: step(closure), or "
                             "first_step() and second_step()")
        self.combine(params, base)

    # --- the shear force

    def keep_shear(self, params: Sequence[Tensor], base: Sequence[Tensor]) -> None:
        """Keep the shear force of the second gradients in `p.grad`; it replaces an older one."""
        self.new_shear.update((p, shear_force(p.grad, g)) for p, g in zip(params, base, strict=True)
                              if p.grad is not None)

    def sheared(self) -> list[Tensor]:
        """The parameters that have both a gradient and a shear force."""
        return [p for p in self._with_gradients()
                if p in self.new_shear or "shear_force" in self.state.get(p, {})]

    def shear(self, p: Tensor) -> Tensor:
        """The shear force of `p` as it was stored."""
        if p in self.new_shear:
            return self.new_shear[p]
        value, scale = (self.state[p].get(name) for name in STORED.values())
        return restored(value, scale, grad_of(p))

    def inject_shear(self, alpha: float) -> None:
        """Add the shear forces to the gradients, as new tensors: the caller's are kept."""
        sheared = self.sheared()
        injected = with_shear(grads_of(sheared), [self.shear(p) for p in sheared], alpha)
        for p, gradient in zip(sheared, injected, strict=True):
            p.grad = gradient

    def after_step(self) -> None:
        """Store the new shear forces: only now, since torch's AdamW takes a tensor with any state
        for an initialized one."""
        for p, shear in self.new_shear.items():
            for part, value in stored(shear, self.shear_storage).items():
                self.state[p][STORED[part]] = value
        self.new_shear.clear()
        super().after_step()

    def has_own_dtype(self, key: str) -> bool:
        """Also a shear force that is kept in fewer bytes."""
        return super().has_own_dtype(key) or (self.shear_storage != "full"
                                              and key in STORED.values())


class SharpnessWrapper(SharpnessAware, Wrapper):
    """A wrapper that gives `base` a sharpness-aware gradient each time it asks for one."""

    def __init__(self, base: Optimizer, rho: float, rho_schedule: str, rho_gap: float,
                 **scalars: float) -> None:
        super().__init__(base)
        self.keep_sharpness(rho, rho_schedule, rho_gap, "full", **scalars)

    def inner_closure(self, closure: Closure | None) -> Closure | None:
        """`gradient` in the place of the closure; without one it prepares `p.grad` now."""
        if closure is None:
            self.gradient(None)
            return None
        return partial(self.gradient, closure)
