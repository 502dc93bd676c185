"""Base class of wrappers that modify the change which `base` makes to each weight."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import checks
from .base import Closure
from .polar import as_matrices
from .wrapper import Wrapper

Scope = Literal["matrix", "all"]


class Delta(Wrapper):
    """Copies the weights W, runs `base`, which gives W_base, and then sets the weights to
    move(p, W, u, group), where u = (W - W_base) / lr is the direction of `base` and lr is the
    group's in this step. Subclasses give `move`.

    scope: "matrix" changes the groups on the matrix track, and the tensors of two or more
    dimensions in groups without a track; "all" changes every parameter. W and u have the shape
    (stack, m, n) of `as_matrices` and at least float32. There is no master copy: u contains the
    rounding of the weights, a relative error of about 6e-8 |W| / (lr |u|) in float32 (2e-3 in
    bfloat16), so a step below the weights' rounding gives u = 0. With lr = 0 the weights do not
    change.

    The closure is passed through, so `base` can be any rule. Norms are those of whole tensors, as
    under `Sharded` and `Gathered`; for DTensors split across processes they would be wrong.
    `pins` marks a subclass that resets weights to a fixed norm: a weight decay around it takes its
    mask from u. Raises ValueError for complex parameters, and if `base` has a weight decay, which u
    would contain, unless the subclass sets `accepts_decay`.
    """

    accepts_decay = False
    pins = False
    handed: dict[Tensor, Tensor] | None = None  # u per parameter, if an outer wrapper asks for it

    def __init__(self, base: Optimizer, scope: Scope = "matrix") -> None:
        checks.choice(Scope, scope=scope)
        super().__init__(base)
        self.scope = scope
        self.before: dict[Tensor, Tensor] = {}  # the weights before the current step
        for group in self.param_groups:
            self._require_fit(group)

    def move(self, p: Tensor, w: Tensor, u: Tensor, group: dict) -> Tensor:
        """Return the weights after the step, in the shape of w and u; `p` holds W_base."""
        raise TypeError(f"{type(self).__name__} must define move()")

    def scoped(self, group: dict) -> list[Tensor]:
        """Return the parameters of `group` that this wrapper changes."""
        return in_scope(group, self.scope)

    def add_param_group(self, group: dict) -> None:
        """Add a group to the wrapped optimizer. Raises ValueError for one with a weight decay or
        complex parameters."""
        super().add_param_group(group)
        if "scope" in self.__dict__:
            self._require_fit(self.param_groups[-1])

    def _require_fit(self, group: dict) -> None:
        if any(p.is_complex() for p in group["params"]):
            raise ValueError("complex parameters are not supported")
        decay = group.get("weight_decay", 0)
        if decay and not self.accepts_decay and self.scoped(group):
            raise ValueError(f"{type(self).__name__} needs weight_decay = 0 in the optimizer that "
                             f"it wraps, got {decay}: for weight decay wrap it in CautiousDecay")

    # --- the step

    @torch.compiler.disable(recursive=False)  # compiled, it loses the copies; `base` is compiled
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step of `base`, modify its change, and return what `base` returns. After an
        exception the weights are those before the step."""
        try:
            return super().step(closure)
        except BaseException:
            with torch.no_grad():
                for p, before in self.before.items():
                    p.copy_(before)
            raise
        finally:
            self.before.clear()

    def first_step(self, zero_grad: bool = False) -> bool:
        """Copy the weights and call `first_step` of the sharpness-aware optimizer inside."""
        self.after_gradient()
        return super().first_step(zero_grad)

    def inner_closure(self, closure: Closure | None) -> Closure | None:
        """Return the closure, extended to copy the weights; without a closure copy them now."""
        if closure is None:
            self.after_gradient()
            return None

        def copying(**options: Any) -> Tensor:
            loss = closure(**options)
            self.after_gradient()
            return loss

        return copying

    @torch.compiler.disable
    @torch.no_grad()
    def after_gradient(self) -> None:
        """Copy the weights that have a gradient, once per step: later calls see moved weights."""
        for group in self.param_groups:
            for p in self.scoped(group):
                if p.grad is not None and p.numel() and p not in self.before:
                    self.before[p] = p.detach().clone()

    @torch.compiler.disable
    def after_step(self) -> None:
        """Apply `move` to every weight that was copied."""
        for group in self.param_groups:
            lr = float(group["lr"])
            for p in self.scoped(group):
                if p in self.before:
                    w, moved = (matrices(x) for x in (self.before[p], p.detach()))
                    u = (w - moved) / (lr or 1.0)
                    after = self.move(p, w, u, group)
                    if self.handed is not None:
                        self.handed[p] = u
                    if lr:  # with lr = 0 `move` still creates state, as torch's checkpoints need
                        p.copy_(after.reshape(p.shape))


def in_scope(group: dict, scope: str) -> list[Tensor]:
    """Return the parameters of `group` that are in `scope`, see `Delta`."""
    if scope == "all":
        return group["params"]
    if "track" in group:
        return group["params"] if group["track"] == "matrix" else []
    return [p for p in group["params"] if p.ndim >= 2]


def matrices(tensor: Tensor) -> Tensor:
    """Return `tensor` as (stack, m, n), a vector as (1, m, 1), in float32 or wider."""
    tensor = as_matrices(tensor if tensor.ndim else tensor[None])
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def norm(stack: Tensor, dim: tuple[int, ...] = (-2, -1)) -> Tensor:
    """Return the Frobenius norm of each matrix, (stack, 1, 1), or with dim (-1,) of each row,
    (stack, m, 1). Entries are scaled first, so squares do not overflow."""
    largest = stack.abs().amax(dim, keepdim=True)
    return largest * torch.linalg.vector_norm(over(stack, largest), dim=dim, keepdim=True)


def over(numerator: Tensor, norms: Tensor) -> Tensor:
    """Return numerator / norms, and 0 where a norm is 0."""
    return torch.where(norms > 0, numerator / norms.clamp_min(torch.finfo(norms.dtype).tiny), 0)
