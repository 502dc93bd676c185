"""Sums over the parameters of all processes, for rules that look at all parameters together.

Outside a step of `Sharded` every function here is the identity.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer


class Shared(Protocol):
    """What this module needs of an optimizer whose parameters several processes share."""

    base: Optimizer
    device: torch.device

    def send(self, params: Iterable[Tensor]) -> None:
        """Start sending these parameters to the other processes."""


_running: Shared | None = None  # the optimizer whose step this process is in


@contextmanager
def running(optimizer: Shared) -> Iterator[None]:
    """Inside, `total` sums over the processes of `optimizer`."""
    global _running
    outer, _running = _running, optimizer
    try:
        yield
    finally:
        _running = outer


def total(value: Tensor) -> Tensor:
    """The sum over the processes that share the parameters of the running step, in float64: a
    process without parameters has no dtype of its own, and all must decide by the same number."""
    if _running is None:
        return value
    value = value.to(_running.device, torch.float64, copy=True)
    dist.all_reduce(value)
    return value


def total_norm(norm: Tensor) -> Tensor:
    """The norm over all parameters from the norm over this process's share of them."""
    return norm if _running is None else total(norm.square()).sqrt()


def publish(rule: Optimizer, params: Iterable[Tensor]) -> None:
    """Start sending these parameters, which `rule` has updated, while it updates others. Nothing
    happens if `rule` is inside another optimizer, which may still change them."""
    if _running is not None and _running.base is rule:
        _running.send(params)
