"""An optimizer whose state and work are sharded over processes (ZeRO stage 1, Rajbhandari et al.
2019, arXiv 1910.02054). Matrices are not split, since each is orthogonalized as a whole.

A rule that updates each parameter by itself works unchanged; one that sums over all parameters uses
`collective.total`.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from ..base import Closure, evaluated_weights, inner_step
from ..polar import as_matrices
from ..wrapper import Wrapper, wrappers_of
from .collective import running

ELEMENTWISE = 8  # cost per element; orthogonalization adds the length of the shorter side


def update_cost(p: Tensor, group: dict) -> int:
    """Return the approximate cost of updating `p`: elements times the shorter side of a matrix."""
    if group.get("track") != "matrix":
        return p.numel() * ELEMENTWISE
    return p.numel() * (ELEMENTWISE + min(as_matrices(p).shape[-2:]))


def balanced(costs: Sequence[int], shares: int) -> list[int]:
    """Assign each item to one of `shares`, most expensive first, each to the smallest load."""
    loads, chosen = [0] * shares, [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        chosen[index] = loads.index(min(loads))
        loads[chosen[index]] += costs[index]
    return chosen


class Sharded(Wrapper):
    """Shards the work and the state of `base` over the processes of torch.distributed.

    All processes must hold the same weights and call `step` together. The closure must leave the
    gradients of the whole batch on each process (as DistributedDataParallel does). The state_dict
    has the format of a single process and is complete on process 0 only; every process loads the
    complete one. Raises ValueError for a rule that cannot be sharded.

    Cost per step, bytes received by each process: those of the parameters that others own, once,
    and once more for every further gradient evaluation at moved weights.
    """

    def __init__(self, base: Optimizer) -> None:
        _require_shardable(base)
        super().__init__(base)
        groups = [(p, group) for group in self.param_groups for p in group["params"]]
        owners = balanced([update_cost(p, group) for p, group in groups], dist.get_world_size())
        self.owner = {p: owner for (p, _), owner in zip(groups, owners, strict=True)}
        self.rank = dist.get_rank()
        self.device = groups[0][0].device
        self.hidden: dict[Tensor, Tensor] = {}
        self.under_way: list[tuple[dist.Work, Tensor, list[Tensor]]] = []
        self.sent: set[Tensor] = set()
        self._drop_others_state()

    def is_mine(self, p: Tensor) -> bool:
        """Whether this process updates `p`."""
        return self.owner[p] == self.rank

    def step(self, closure: Closure | None = None) -> Any:
        """Take one step of `base` on this process's share, receive the others' weights, and return
        the loss."""
        try:
            with running(self):
                if closure is None:
                    self._take_gradients()
                    loss = inner_step(self.base)
                else:
                    self.passes = int(_moves_first(self.base))
                    loss = inner_step(self.base, partial(self._pass, closure))
                self._exchange()
        finally:
            self._give_back_gradients()
        return loss

    def after_mode(self) -> None:
        """Exchange weights that `train` or `eval` of an inner optimizer has changed."""
        if evaluated_weights(self.base) is not None:
            self._exchange()

    def first_step(self, zero_grad: bool = False) -> bool:
        """Raise TypeError: with several processes a sharpness-aware step needs a closure."""
        raise TypeError("first_step() works in one process only: use step(closure)")

    def _pass(self, closure: Closure) -> Tensor:
        if self.passes:  # the rule, or a wrapper, has moved its weights
            self._exchange()
        self.passes += 1
        loss = closure()
        self._take_gradients()
        return loss

    def _take_gradients(self) -> None:
        """Hide the gradients of parameters that other processes own, so that `base` skips them."""
        self.hidden = {p: p.grad for p in self.owner if not self.is_mine(p) and p.grad is not None}
        for p in self.hidden:
            p.grad = None

    def _give_back_gradients(self) -> None:
        for p, grad in self.hidden.items():
            p.grad = grad
        self.hidden = {}

    def _exchange(self) -> None:
        self.send(self.owner)
        self._receive()

    @torch.no_grad()
    def send(self, params: Iterable[Tensor]) -> None:
        """Start sending the `params` this process owns and receiving the others: one message per
        owner and dtype."""
        left = [p for p in params if p not in self.sent]
        self.sent.update(left)
        for (owner, dtype), members in _grouped(left, self.owner).items():
            if owner == self.rank:
                flat = torch.cat([p.flatten() for p in members])
            else:
                flat = torch.empty(sum(p.numel() for p in members), dtype=dtype,
                                   device=self.device)
            work = dist.broadcast(flat, owner, async_op=True)
            assert work is not None  # this process is in the group
            self.under_way.append((work, flat, members))

    @torch.no_grad()
    def _receive(self) -> None:
        for work, flat, members in self.under_way:
            work.wait()
            if not self.is_mine(members[0]):
                parts = flat.split([p.numel() for p in members])
                torch._foreach_copy_(members, [part.view_as(p) for part, p
                                               in zip(parts, members, strict=True)])
        self.under_way, self.sent = [], set()

    def packed(self) -> dict:
        """Return the state_dict of `base`: complete on process 0, the own share on the others."""
        state_dict = on_cpu(super().packed())
        parts: list[dict] = [{}] * dist.get_world_size()
        dist.gather_object(state_dict, parts if self.rank == 0 else None)
        if self.rank != 0:
            return state_dict
        states = {index: entry for part in parts for index, entry in part["state"].items()}
        return {**state_dict, "state": dict(sorted(states.items()))}

    def after_loading(self) -> None:
        """Keep this process's share of a complete state_dict."""
        super().after_loading()
        self._drop_others_state()

    def _drop_others_state(self) -> None:
        for p in self.owner:
            if not self.is_mine(p):
                self.state.pop(p, None)


def _require_shardable(optimizer: Optimizer) -> None:
    if isinstance(optimizer, LBFGS):
        raise ValueError("LBFGS cannot be sharded: it treats all parameters as one vector")
    if isinstance(optimizer, Wrapper):
        if getattr(optimizer, "local", False):
            raise ValueError(f"{type(optimizer).__name__} uses each process's own gradient, which "
                             'needs all weights: set experiment.sharding = "none"')
        _require_shardable(optimizer.base)


def _moves_first(optimizer: Optimizer) -> bool:
    """Whether a wrapper moves the weights before the first gradient of a step."""
    return any(getattr(wrapper, "moves_before_gradient", False)
               for wrapper in wrappers_of(optimizer))


def _grouped(params: Iterable[Tensor], owner: dict[Tensor, int]
             ) -> dict[tuple[int, torch.dtype], list[Tensor]]:
    groups: dict[tuple[int, torch.dtype], list[Tensor]] = {}
    for p in params:
        groups.setdefault((owner[p], p.dtype), []).append(p)
    return dict(sorted(groups.items(), key=lambda item: (item[0][0], str(item[0][1]))))


def on_cpu(value: Any) -> Any:
    """Return `value` with all tensors, also inside dicts, lists and tuples, moved to the CPU."""
    if torch.is_tensor(value):
        return value.cpu()
    if isinstance(value, dict):
        return {key: on_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_cpu(item) for item in value)
    return value
