"""The base of hooks around a rule's move: what `base` does to a weight is read, then changed."""

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
    """Copies the weights W, lets `base` step, and puts W_after = move(p, W, u, group) in its place,
    where u = (W - W_base) / lr is the direction of `base` with the lr of the group in this step.

    scope: "matrix" the groups on the matrix track, in groups without a track the tensors of two or
    more dimensions; "all" every parameter. W and u are stacks of matrices, (stack, m, n) as in
    `as_matrices`, in float32 at least; of bfloat16 weights u has the rounding of the weights, since
    there is no master copy. Where lr is 0 the weights stay.

    The closure is passed through, so that any rule may be inside; norms are those of whole tensors,
    as `Sharded` and `Gathered` have them (of DTensors that are cut up they would be wrong).
    A hook that puts weights back at a norm has `pins`: the mask of a decay around it is that of u.
    Raises ValueError for complex parameters, and where `base` has a weight decay of its own, which
    u would contain, unless the hook `accepts_decay`.
    """

    accepts_decay = False
    pins = False
    handed: dict[Tensor, Tensor] | None = None  # u by parameter, for a hook around that asks for it

    def __init__(self, base: Optimizer, scope: Scope = "matrix") -> None:
        checks.choice(Scope, scope=scope)
        super().__init__(base)
        self.scope = scope
        self.before: dict[Tensor, Tensor] = {}  # the weights of the step that is under way
        for group in self.param_groups:
            self._require_fit(group)

    def move(self, p: Tensor, w: Tensor, u: Tensor, group: dict) -> Tensor:
        """The weights after the step, of the shape of w and u; `p` has what `base` made of them."""
        raise TypeError(f"{type(self).__name__} defines no move")

    def scoped(self, group: dict) -> list[Tensor]:
        """The parameters of `group` that this hook changes."""
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
            raise ValueError(f"{type(self).__name__} needs weight_decay = 0 in the rule that it "
                             f"wraps, got {decay}: a decay around it is CautiousDecay's")

    # --- the step

    @torch.compiler.disable(recursive=False)  # it would lose the weights; `base` is compiled
    def step(self, closure: Closure | None = None) -> Any:
        """One step of `base` and the change of its move; what `base` returns."""
        try:
            return super().step(closure)
        finally:
            self.before.clear()

    def first_step(self, zero_grad: bool = False) -> bool:
        """`first_step` of the sharpness-aware optimizer inside."""
        self.after_gradient()
        return super().first_step(zero_grad)

    def inner_closure(self, closure: Closure | None) -> Closure | None:
        """The closure; after it, and without one at once, the weights are noted."""
        if closure is None:
            self.after_gradient()
            return None

        def noting(**options: Any) -> Tensor:
            loss = closure(**options)
            self.after_gradient()
            return loss

        return noting

    @torch.compiler.disable
    @torch.no_grad()
    def after_gradient(self) -> None:
        """Note the weights that have a gradient, once a step: later calls are at moved weights."""
        for group in self.param_groups:
            for p in self.scoped(group):
                if p.grad is not None and p.numel() and p not in self.before:
                    self.before[p] = p.detach().clone()

    @torch.compiler.disable
    def after_step(self) -> None:
        """`move` for every weight that was noted."""
        for group in self.param_groups:
            lr = float(group["lr"])
            for p in self.scoped(group):
                if p in self.before:
                    w, moved = (matrices(x) for x in (self.before[p], p.detach()))
                    u = (w - moved) / (lr or 1.0)
                    after = self.move(p, w, u, group)
                    if self.handed is not None:
                        self.handed[p] = u
                    if lr:  # else what a hook remembers has begun, as torch's checkpoints want
                        p.copy_(after.reshape(p.shape))


def in_scope(group: dict, scope: str) -> list[Tensor]:
    """The parameters of `group` in a scope, see `Delta`."""
    if scope == "all":
        return group["params"]
    if "track" in group:
        return group["params"] if group["track"] == "matrix" else []
    return [p for p in group["params"] if p.ndim >= 2]


def matrices(tensor: Tensor) -> Tensor:
    """`tensor` as (stack, m, n), a vector as (1, m, 1), in float32 at least."""
    tensor = as_matrices(tensor if tensor.ndim else tensor[None])
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def norm(stack: Tensor, dim: tuple[int, ...] = (-2, -1)) -> Tensor:
    """The Frobenius norm of each matrix, (stack, 1, 1); of each row with dim (-1,). No square
    overflows."""
    largest = stack.abs().amax(dim, keepdim=True)
    return largest * torch.linalg.vector_norm(over(stack, largest), dim=dim, keepdim=True)


def over(numerator: Tensor, norms: Tensor) -> Tensor:
    """numerator / norms; where a norm is 0, 0."""
    return torch.where(norms > 0, numerator / norms.clamp_min(torch.finfo(norms.dtype).tiny), 0)
