"""An optimizer for a model whose tensors are sharded over the processes (FSDP2, fully_shard).

A matrix rule needs whole matrices. Each parameter has an owner process, which holds a whole copy of
it and its state, so all owners together hold the model a second time. Gradients are sent to the
owners and new weights back to the shards, each as one message.
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

if TYPE_CHECKING:  # takes seconds to import; used in annotations only
    from torch.distributed.tensor import DTensor


class Gathered(Sharded):
    """Applies `base`, built over whole tensors, to a model that holds `shards` of them.

    shards: the model's DTensors, sharded along dimension 0 as fully_shard does, in the order of
    `base`'s groups. Gradients are read from the shards and weights written to them; `base` updates
    whole tensors, and each process holds those it owns. Raises ValueError for a rule that works on
    the model's own tensors.

    Cost per step, bytes received by each process: its share of the gradients and of the weights,
    1 / processes of the model each, besides the traffic of fully_shard.
    """

    def __init__(self, base: Optimizer, shards: "Sequence[DTensor]") -> None:
        _require_whole_tensors(base)
        super().__init__(base)
        self.shards = dict(zip(self.owner, shards, strict=True))
        self.rows = {p: _rows(len(p), dist.get_world_size()) for p in self.owner}
        for p in self.owner:
            if not self.is_mine(p):  # keep the shape, free the memory
                p.data = p.data.new_empty(()).expand(p.shape)

    def _take_gradients(self) -> None:
        """Send gradient shards to the owners; set whole gradients of the owned parameters."""
        present = [p for p in self.owner if self.shards[p].grad is not None]
        parts = {p: self.shards[p].grad.to_local() for p in present}
        for p, whole in self._to_owners(parts).items():
            p.grad = whole

    def _give_back_gradients(self) -> None:
        for p in self.owner:
            p.grad = None

    @torch.no_grad()
    def _exchange(self) -> None:
        """Send the owned weights, as shards, to all processes; receive the model's own shards."""
        owned = [p for p in self.owner if self.is_mine(p)]
        for dtype in _dtypes(self.owner):
            outgoing = [[part for p in owned if p.dtype == dtype
                         for part in [p.split(self.rows[p])[rank]]]
                        for rank in range(dist.get_world_size())]
            incoming = [[self.shards[p].to_local() for p in self.owner
                         if self.owner[p] == rank and p.dtype == dtype]
                        for rank in range(dist.get_world_size())]
            for parts, flat in zip(incoming, _all_to_all(outgoing, incoming), strict=True):
                for part, new in zip(parts, _like(flat, parts), strict=True):
                    part.copy_(new)

    def _to_owners(self, parts: dict[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Send the shards `parts` to the owners; return the whole tensors this process owns."""
        whole = {}
        world = range(dist.get_world_size())
        for dtype in _dtypes(parts):
            present = [p for p in parts if p.dtype == dtype]
            owned = [p for p in present if self.is_mine(p)]
            outgoing = [[parts[p] for p in present if self.owner[p] == rank] for rank in world]
            incoming = [[p.new_empty(1).expand(self.rows[p][rank], *p.shape[1:]) for p in owned]
                        for rank in world]
            received = [_like(flat, shapes) for flat, shapes
                        in zip(_all_to_all(outgoing, incoming), incoming, strict=True)]
            for index, p in enumerate(owned):
                whole[p] = torch.cat([pieces[index] for pieces in received])
        return whole

    def send(self, params: object) -> None:
        """Do nothing: all weights are sent in one message after the step."""

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict) -> None:
        """Restore `base`, with the weights that the model holds now: load the model first."""
        for p, whole in self._to_owners({p: shard.to_local() for p, shard
                                         in self.shards.items()}).items():
            p.copy_(whole)
        super().load_state_dict(state_dict)


def _require_whole_tensors(optimizer: Optimizer) -> None:
    cls = type(optimizer)
    if "model" in inspect.signature(cls).parameters or getattr(cls, "whole_model", False):
        raise ValueError(f"{type(optimizer).__name__} works on the model's own tensors, which "
                         'sharding = "model" splits: use sharding = "optimizer"')
    if isinstance(optimizer, Wrapper):
        _require_whole_tensors(optimizer.base)


def _rows(rows: int, processes: int) -> list[int]:
    """Return the number of rows of each process, as torch.chunk splits them; it may be 0."""
    most = -(-rows // processes)
    return [max(0, min(most, rows - rank * most)) for rank in range(processes)]


def _dtypes(tensors: Iterable[Tensor]) -> list[torch.dtype]:
    return sorted({tensor.dtype for tensor in tensors}, key=str)


def _all_to_all(outgoing: list[list[Tensor]], incoming: list[list[Tensor]]) -> Sequence[Tensor]:
    """Send outgoing[rank] to each rank; return what each rank sent, flat, sized as incoming."""
    counts = [[sum(tensor.numel() for tensor in tensors) for tensors in lists]
              for lists in (outgoing, incoming)]
    like = next(tensor for tensors in [*outgoing, *incoming] for tensor in tensors)
    flat = torch.cat([like.new_empty(0), *(t.flatten() for tensors in outgoing for t in tensors)])
    received = flat.new_empty(sum(counts[1]))
    dist.all_to_all_single(received, flat, counts[1], counts[0])
    return received.split(counts[1])


def _like(flat: Tensor, shapes: Sequence[Tensor]) -> list[Tensor]:
    """Split `flat` into tensors of the shapes of `shapes`."""
    parts = flat.split([tensor.numel() for tensor in shapes])
    return [part.view(tensor.shape) for part, tensor in zip(parts, shapes, strict=True)]
