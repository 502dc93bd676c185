"""Many processes as one run (torchrun): who am I, what is my part, what do all of us say.

In a process of its own there is a world of one, and everything here is the identity: what only
sharded models need is imported where they are, since it takes as long to import as torch itself.
"""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

LOST = ("gloo", "Connection", "closed by peer", "NCCL", "Timed out", "timed out")


# --- the world


def size() -> int:
    """Processes in this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process writes the files."""
    return rank() == 0


def restarted() -> bool:
    """Whether torchrun has started this run again after a failure."""
    return _restarts() > 0


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Inside, the processes that torchrun started are one world: gloo for CPU tensors, NCCL for
    CUDA's. `device` as in the configuration; on CUDA each process takes the card of its number.

    Raises ConfigError for a missing backend, too few cards, or others that cannot be reached.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        yield
        return
    backend = _backend(pick_device(device).type)
    try:
        # What a dead attempt left in torchrun's store would be taken for living processes.
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
        raise ConfigError("this torch was built without gloo: more than one process is impossible")
    if device_type == "cpu":
        return "gloo"
    local, cards = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= cards:
        raise ConfigError(f"process {local} of this host finds {cards} CUDA devices: "
                          f"--nproc-per-node {cards}, or --device cpu")
    if not dist.is_nccl_available():
        raise ConfigError("this torch was built without NCCL: --device cpu, or one process")
    torch.cuda.set_device(local)
    return "cpu:gloo,cuda:nccl"


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone."""
    return size() > 1 and isinstance(error, RuntimeError) \
        and any(word in str(error) for word in LOST)


# --- agreement


@contextmanager
def together() -> Iterator[None]:
    """What is wrong for one process is wrong for all: each raises the first one's error.

    Only for ConfigError and DataError, and for blocks without collectives.
    """
    mine = None
    try:
        yield
    except (ConfigError, DataError) as error:
        mine = error
    if size() > 1:
        found = from_all(str(mine) if mine else None)
        if mine is None and any(found):
            number, text = next((n, text) for n, text in enumerate(found) if text)
            mine = ConfigError(f"process {number}: {text}")
    if mine is not None:
        raise mine


@contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block before the others: it makes files that they then find."""
    if not is_main():
        dist.barrier()
    try:
        yield
    finally:
        if is_main() and size() > 1:
            dist.barrier()


def from_main(make: Callable[[], Any]) -> Any:
    """What `make` returns on the main process, on all of them."""
    if size() == 1:
        return make()
    held = [make() if is_main() else None]
    dist.broadcast_object_list(held, device=torch.device("cpu"))
    return held[0]


def from_all(value: Any) -> list[Any]:
    """Every process's value, in the order of the processes, on all of them."""
    if size() == 1:
        return [value]
    found = [None] * size()
    dist.all_gather_object(found, value)
    return found


class Consensus:
    """The same decision everywhere at the same step, without waiting for it.

    What any process hands in at one step all of them hear at the next; alone, at once.
    """

    def __init__(self) -> None:
        self.work: dist.Work | None = None

    def hear(self, signal: int) -> int:
        """Hand in `signal`; the largest one that was handed in at the step before, 0 at first."""
        if size() == 1:
            return signal
        heard = 0
        if self.work is not None:
            self.work.wait()
            heard = int(self.value)
        self.value = torch.tensor(signal)  # on the CPU: no device has to wait
        self.work = dist.all_reduce(self.value, dist.ReduceOp.MAX, async_op=True)
        return heard


# --- parts of the work


def my_batches(rows: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """This process's part of tensors of equal length in batches of at most `rows`: as many batches
    for every process, since a sharded model's weights come from all of them."""
    if size() == 1:
        return zip(*(tensor.split(rows) for tensor in tensors), strict=True)
    largest = -(-len(tensors[0]) // size())
    batches = -(-largest // rows)
    parts = (tensor.tensor_split(size())[rank()] for tensor in tensors)
    return zip(*(part.tensor_split(batches) for part in parts), strict=True)


def part_of(batch: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor | float]:
    """This process's rows of a batch, and their share of its targets: the weight with which means
    over these rows add up to means over the batch. batch[-1] are the targets; IGNORED ones count
    for nothing."""
    if size() == 1:
        return batch, 1.0
    part = tuple(tensor.tensor_split(size())[rank()] for tensor in batch)
    counts = [(targets != IGNORED).sum(dtype=torch.float64) for targets in (part[-1], batch[-1])]
    return part, counts[0] / counts[1].clamp_min(1)


def all_sum(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


# --- the model


class Applied(nn.Module):
    """Any function of a model as a forward pass, which is where data parallelism looks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable, *inputs: Tensor) -> Any:
        """function(model, *inputs)."""
        return function(self.model, *inputs)


def data_parallel(model: nn.Module, sharding: str) -> nn.Module:
    """What runs `model` (an Applied) with its gradients averaged over the processes: DDP, or for
    sharding "model" FSDP2, which cuts up the tensors of `model` in place.

    Raises ConfigError if the processes hold tensors of different shapes.
    """
    applied = Applied(model)
    if size() == 1:
        return applied
    _require_same_shapes(model)
    if sharding == "model":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(next(model.parameters()).device.type, (size(),))
        for layer in model.layers() if hasattr(model, "layers") else ():
            fully_shard(layer, mesh=mesh)
        return fully_shard(applied, mesh=mesh)
    # Buffers are equal everywhere already: batch norms are synchronized. torch 2.15 renamed this.
    accepted = inspect.signature(DistributedDataParallel).parameters
    renamed = "forward_sync_buffers" in accepted
    options = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(applied, **options)


def _require_same_shapes(model: nn.Module) -> None:
    mine = {name: tuple(p.shape) for name, p in model.named_parameters()}
    main = from_main(lambda: mine)
    with together():
        if mine != main:
            name = next(name for name in [*main, *mine] if main.get(name) != mine.get(name))
            raise ConfigError(f"the processes do not hold the same model: {name} is "
                              f"{main.get(name)} on the main process, {mine.get(name)} here")


def whole(state: dict) -> dict:
    """A model's state_dict with every shard made whole, on all processes; others as they are."""
    return {name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            for name, tensor in state.items()}


def load_whole(model: nn.Module, state: dict) -> None:
    """Load a state_dict of whole tensors into a model that may be sharded."""
    if size() == 1:
        model.load_state_dict(state)
    else:
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions,
            set_model_state_dict,
        )

        set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))
