"""An optimizer for a model whose tensors are cut up over the processes (FSDP2, fully_shard).

A rule for matrices wants whole ones. Each parameter has an owner that keeps it whole, with its
state, as mixed-precision training keeps float32 copies: all owners together hold the model once
more. Gradients travel to the owners and new weights back to the shards, each as one message.
"""

import inspect
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from ..wrapper import Wrapper
from .sharded import Sharded

if TYPE_CHECKING:  # seconds to import, and here only a name
    from torch.distributed.tensor import DTensor


class Gathered(Sharded):
    """`base`, built over whole tensors, for a model that holds `shards` of them.

    shards: the model's DTensors, cut along dimension 0 as fully_shard does, in the order of
    `base`'s groups. Gradients are taken from them and weights put into them; `base` sees whole
    tensors, of which every process keeps those it owns. Raises ValueError for a rule that works
    on the model's own tensors.

    Cost a step, bytes received by each process: its share of the gradients and of the weights,
    1 / processes of the model each, besides what fully_shard itself sends.
    """

    def __init__(self, base: Optimizer, shards: "Sequence[DTensor]") -> None:
        _require_whole_tensors(base)
        super().__init__(base)
        self.shards = dict(zip(self.owner, shards, strict=True))
        self.rows = {p: _rows(len(p), dist.get_world_size()) for p in self.owner}
        for p in self.owner:
            if not self.is_mine(p):  # only its shape is of use
                p.data = p.data.new_empty(()).expand(p.shape)

    def _take_gradients(self) -> None:
        """To each owner the parts of its gradients, whole."""
        present = [p for p in self.owner if self.shards[p].grad is not None]
        parts = {p: self.shards[p].grad.to_local() for p in present}
        for p, whole in self._to_owners(parts).items():
            p.grad = whole

    def _give_back_gradients(self) -> None:
        for p in self.owner:
            p.grad = None

    @torch.no_grad()
    def _exchange(self) -> None:
        """To each process its parts of the owners' weights."""
        mine = [p for p in self.owner if self.is_mine(p)]
        for dtype in _dtypes(self.owner):
            outgoing = [[part for p in mine if p.dtype == dtype
                         for part in [p.split(self.rows[p])[rank]]]
                        for rank in range(dist.get_world_size())]
            incoming = [[self.shards[p].to_local() for p in self.owner
                         if self.owner[p] == rank and p.dtype == dtype]
                        for rank in range(dist.get_world_size())]
            for parts, flat in zip(incoming, _all_to_all(outgoing, incoming), strict=True):
                for part, new in zip(parts, _like(flat, parts), strict=True):
                    part.copy_(new)

    def _to_owners(self, parts: dict[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Each owner's tensors, whole, from everyone's `parts` of all of them."""
        whole = {}
        world = range(dist.get_world_size())
        for dtype in _dtypes(parts):
            present = [p for p in parts if p.dtype == dtype]
            mine = [p for p in present if self.is_mine(p)]
            outgoing = [[parts[p] for p in present if self.owner[p] == rank] for rank in world]
            incoming = [[p.new_empty(1).expand(self.rows[p][rank], *p.shape[1:]) for p in mine]
                        for rank in world]
            received = [_like(flat, shapes) for flat, shapes
                        in zip(_all_to_all(outgoing, incoming), incoming, strict=True)]
            for index, p in enumerate(mine):
                whole[p] = torch.cat([pieces[index] for pieces in received])
        return whole

    def send(self, params: object) -> None:
        """Nothing early: all weights go in one message."""

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict) -> None:
        """Restore `base`; the weights are those that the model holds now: load them first."""
        for p, whole in self._to_owners({p: shard.to_local() for p, shard
                                         in self.shards.items()}).items():
            p.copy_(whole)
        super().load_state_dict(state_dict)


def _require_whole_tensors(optimizer: Optimizer) -> None:
    cls = type(optimizer)
    if "model" in inspect.signature(cls).parameters or getattr(cls, "whole_model", False):
        raise ValueError(f"{type(optimizer).__name__} works on the model's own tensors, which "
                         'sharding = "model" cuts up: sharding = "optimizer" leaves them whole')
    if isinstance(optimizer, Wrapper):
        _require_whole_tensors(optimizer.base)


def _rows(rows: int, processes: int) -> list[int]:
    """How many rows each process has, as torch.chunk cuts them: the last may have none."""
    most = -(-rows // processes)
    return [max(0, min(most, rows - rank * most)) for rank in range(processes)]


def _dtypes(tensors: Iterable[Tensor]) -> list[torch.dtype]:
    return sorted({tensor.dtype for tensor in tensors}, key=str)


def _all_to_all(outgoing: list[list[Tensor]], incoming: list[list[Tensor]]) -> Sequence[Tensor]:
    """Send outgoing[rank] to each rank; what each of them sent, flat, of incoming[rank]'s size."""
    counts = [[sum(tensor.numel() for tensor in tensors) for tensors in lists]
              for lists in (outgoing, incoming)]
    like = next(tensor for tensors in [*outgoing, *incoming] for tensor in tensors)
    flat = torch.cat([like.new_empty(0), *(t.flatten() for tensors in outgoing for t in tensors)])
    received = flat.new_empty(sum(counts[1]))
    dist.all_to_all_single(received, flat, counts[1], counts[0])
    return received.split(counts[1])


def _like(flat: Tensor, shapes: Sequence[Tensor]) -> list[Tensor]:
    """`flat` cut into tensors of the shapes of `shapes`."""
    parts = flat.split([tensor.numel() for tensor in shapes])
    return [part.view(tensor.shape) for part, tensor in zip(parts, shapes, strict=True)]
