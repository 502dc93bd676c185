"""Sums over the parameters of all processes, for rules that combine all parameters.

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
    """The interface this module requires of an optimizer sharded over several processes."""

    base: Optimizer
    device: torch.device

    def send(self, params: Iterable[Tensor]) -> None:
        """Start sending these parameters to the other processes."""


_running: Shared | None = None  # the optimizer whose step is running in this process


@contextmanager
def running(optimizer: Shared) -> Iterator[None]:
    """Context manager inside which `total` sums over the processes of `optimizer`."""
    global _running
    outer, _running = _running, optimizer
    try:
        yield
    finally:
        _running = outer


def total(value: Tensor) -> Tensor:
    """Return the sum of `value` over the processes of the running step, in float64, since a process
    without parameters has no dtype and all processes need the same number. Outside a step return
    `value`."""
    if _running is None:
        return value
    value = value.to(_running.device, torch.float64, copy=True)
    dist.all_reduce(value)
    return value


def total_norm(norm: Tensor) -> Tensor:
    """Return the norm over all parameters, given the norm over this process's share."""
    return norm if _running is None else total(norm.square()).sqrt()


def publish(rule: Optimizer, params: Iterable[Tensor]) -> None:
    """Start sending the updated parameters while `rule` updates others. Do nothing if `rule` is
    inside another optimizer, which may still change them."""
    if _running is not None and _running.base is rule:
        _running.send(params)
