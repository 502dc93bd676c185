"""Data-parallel runs (torchrun): rank and world size, shards of a batch, collective decisions.

With one process every function here is the identity. Modules that only sharded models need are
imported inside functions: they take as long to import as torch itself.
"""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from data import DataError
from data.batches import IGNORED
from exp.harness.device import pick_device
from exp.harness.errors import ConfigError

# Words in the error of a collective operation whose peer is gone.
LOST = ("gloo", "Connection", "closed by peer", "NCCL", "Timed out", "timed out")


# --- process group


def size() -> int:
    """Number of processes in this run (world size)."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process writes the files."""
    return rank() == 0


def torchrun_id() -> str | None:
    """Name of this torchrun command, the same after it restarts its processes; None without one.

    It is the name of the temporary folder of its error files. TORCHELASTIC_RUN_ID is not unique:
    without --rdzv-id it is "none".
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # FOLDER/attempt_N/RANK/error.json
    return Path(file).parents[2].name if file else None


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Inside, the processes that torchrun started form one process group: gloo for CPU tensors,
    NCCL for CUDA. `device` as in the configuration; on CUDA each process uses the device of its
    local rank.

    Raises ConfigError for a missing backend, too few devices, or unreachable processes.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        yield
        return
    backend = _backend(pick_device(device).type)
    try:
        # Keys that a failed attempt left in torchrun's store would count as live processes.
        store, number, count = next(rendezvous("env://"))
        store = dist.PrefixStore(f"attempt {_restarts()}", store)
        dist.init_process_group(backend, store=store, rank=number, world_size=count)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"cannot join the other {processes - 1} processes: {error}") from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def _backend(device_type: str) -> str:
    if not (dist.is_available() and dist.is_gloo_available()):
        raise ConfigError("this torch was built without gloo: use one process")
    if device_type == "cpu":
        return "gloo"
    local, cards = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= cards:
        raise ConfigError(f"more processes than CUDA devices ({cards}) on this host: "
                          f"use --nproc-per-node {cards} or --device cpu")
    if not dist.is_nccl_available():
        raise ConfigError("this torch was built without NCCL: use --device cpu or one process")
    torch.cuda.set_device(local)
    return "cpu:gloo,cuda:nccl"


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective operation failed because another process ended."""
    return size() > 1 and isinstance(error, RuntimeError) \
        and any(word in str(error) for word in LOST)


# --- collective decisions


@contextmanager
def together() -> Iterator[None]:
    """Raise an error of the block on every process: its own, else that of the lowest rank.

    Only for ConfigError and DataError, and for blocks without collective operations.
    """
    mine = None
    try:
        yield
    except (ConfigError, DataError) as error:
        mine = error
    if size() > 1:
        messages = from_all(str(mine) if mine else None)
        if mine is None and any(messages):
            number, text = next((n, text) for n, text in enumerate(messages) if text)
            mine = ConfigError(f"process {number}: {text}")
    if mine is not None:
        raise mine


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block on the main process first: it writes files that the others then read."""
    if not is_main():
        dist.barrier()
    try:
        yield
    finally:
        if is_main() and size() > 1:
            dist.barrier()


def from_main(make: Callable[[], Any]) -> Any:
    """The return value of `make` on the main process, broadcast to all."""
    if size() == 1:
        return make()
    values = [make() if is_main() else None]
    dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def from_all(value: Any) -> list[Any]:
    """Gather the values of all processes, in order of rank, on every process."""
    if size() == 1:
        return [value]
    values = [None] * size()
    dist.all_gather_object(values, value)
    return values


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; every process must call it."""
    if size() == 1:
        return flag
    value = torch.tensor(int(flag))
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value)


class DelayedMax:
    """An asynchronous all-reduce (max) per step, so that all processes decide alike.

    The result of one step is returned at the next; with one process, at once.
    """

    def __init__(self) -> None:
        self.work: dist.Work | None = None
        self.value = torch.tensor(0)

    def all_max(self, signal: int) -> int:
        """Contribute `signal`; return the previous step's maximum over all processes, 0 at first.
        """
        if size() == 1:
            return signal
        previous = 0
        if self.work is not None:
            self.work.wait()
            previous = int(self.value)
        self.value = torch.tensor(signal)  # on the CPU: no device synchronization
        self.work = dist.all_reduce(self.value, dist.ReduceOp.MAX, async_op=True)
        return previous


# --- shards of the data


def my_batches(rows: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield this process's shard of tensors of equal length in batches of at most `rows`. Every
    process gets the same number of batches, as the collectives of a sharded model require."""
    if size() == 1:
        return zip(*(tensor.split(rows) for tensor in tensors), strict=True)
    largest = -(-len(tensors[0]) // size())
    batches = -(-largest // rows)
    parts = (tensor.tensor_split(size())[rank()] for tensor in tensors)
    return zip(*(part.tensor_split(batches) for part in parts), strict=True)


Part = tuple[tuple[Tensor, ...], Tensor | float]


def parts_of(batch: tuple[Tensor, ...], pieces: int = 1) -> list[Part]:
    """Split this process's rows of a batch into at most `pieces` micro-batches, the same number on
    every process. Return each with its share of the whole batch's targets: micro-batch means,
    weighted by it, add up to the mean over the batch. batch[-1] holds the targets; IGNORED ones do
    not count."""
    pieces = max(1, min(pieces, len(batch[0]) // size()))  # no micro-batch is empty
    if size() == pieces == 1:
        return [(batch, 1.0)]
    mine = [tensor.tensor_split(size())[rank()].tensor_split(pieces) for tensor in batch]
    targets = _targets(batch[-1]).clamp_min(1)
    return [(part, _targets(part[-1]) / targets) for part in zip(*mine, strict=True)]


def _targets(targets: Tensor) -> Tensor:
    return (targets != IGNORED).sum(dtype=torch.float64)


def all_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place, and return it."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


# --- the model


class Applied(nn.Module):
    """Runs any function of a model as a forward pass, so that DDP and FSDP hooks apply."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable, *inputs: Tensor) -> Any:
        """Return function(model, *inputs)."""
        return function(self.model, *inputs)


def data_parallel(model: nn.Module, sharding: str) -> nn.Module:
    """Wrap `model` in an Applied whose gradients are averaged over the processes: by DDP, or with
    sharding = "model" by FSDP2, which shards the parameters of `model` in place.

    Raises ConfigError if tensors differ in shape between processes.
    """
    applied = Applied(model)
    if size() == 1:
        return applied
    _require_same_shapes(model)
    if sharding == "model":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(next(model.parameters()).device.type, (size(),))
        for part in (*getattr(model, "layers", tuple)(), applied):
            fully_shard(part, mesh=mesh)
        return applied
    # Buffers are equal on all processes: batch norms are synchronized. torch 2.15 renamed this.
    accepted = inspect.signature(DistributedDataParallel).parameters
    renamed = "forward_sync_buffers" in accepted
    option: Any = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(applied, **option)


def _require_same_shapes(model: nn.Module) -> None:
    mine = {name: tuple(p.shape) for name, p in model.named_parameters()}
    main = from_main(lambda: mine)
    with together():
        if mine != main:
            name = next(name for name in [*main, *mine] if main.get(name) != mine.get(name))
            raise ConfigError(f"the processes built different models: {name} has shape "
                              f"{main.get(name)} on rank 0, {mine.get(name)} here")


def whole(state: dict) -> dict:
    """Return a model's state_dict with all shards gathered; every process must call it."""
    return {name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            for name, tensor in state.items()}


def load_whole(model: nn.Module, state: dict) -> None:
    """Load a state_dict of full tensors into a model that may be sharded."""
    if size() == 1:
        model.load_state_dict(state)
    else:
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions,
            set_model_state_dict,
        )

        set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))
