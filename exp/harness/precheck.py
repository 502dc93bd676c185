"""Checks before anything is written: model size, a forward pass, an optimizer step."""

import copy
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from data.batches import Batches
from exp.harness.clipping import Clipping
from exp.harness.device import total_memory
from exp.harness.distributed import is_lost_peer, size
from exp.harness.objective import backward, rng_state, set_rng_state
from exp.harness.task import Task
from optimizer import build_optimizer, optimizer_class
from optimizer.parts.base import set_mode
from optimizer.parts.library import refusal, wants_graph

ROWS = 2  # of the first batch
WEIGHT_BYTES = 4 * 4  # per weight: float32 weight and gradient, of the model and of a copy
TENSORS = 50_000  # limit per model: a hundred times a large one's, created in some seconds
OPERATIONS = 3_000  # limit per step and parameter tensor
FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)


class MemoryBound(TorchFunctionMode):
    """Inside, creating a tensor raises ValueError if all tensors created so far, taken as weights,
    would not fit into the memory of `device`, or if they are more than TENSORS."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.memory, self.kind = total_memory(device), device.type
        self.elements = self.tensors = 0

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (),
                           kwargs: dict | None = None) -> Any:
        """Count the elements of a tensor before it is created."""
        if func in FACTORIES:
            self._count(args)
        return func(*args, **(kwargs or {}))

    def _count(self, shape: tuple) -> None:
        sizes = shape[0] if shape and isinstance(shape[0], tuple | list) else shape
        self.elements += math.prod(size for size in sizes if isinstance(size, int))
        self.tensors += 1
        if self.tensors > TENSORS:
            raise ValueError(f"more than {TENSORS:,} tensors in one model: use fewer layers")
        if self.elements * WEIGHT_BYTES > self.memory:
            raise ValueError(f"{self.elements:,} weights or more do not fit into the "
                             f"{self.memory / 2**30:.3g} GiB of this machine's {self.kind} "
                             "memory, with gradients and a copy: use smaller sizes")


class OperationBound(TorchFunctionMode):
    """Inside, every tensor operation after the first `most` raises ValueError."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.count = most, 0

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (),
                           kwargs: dict | None = None) -> Any:
        """Count an operation. What leaves torch.no_grad on an exception is never refused."""
        self.count += 1
        if self.count > self.most and func is not torch._C._set_grad_enabled:
            raise ValueError(f"more than {self.most:,} tensor operations in one step: use "
                             "fewer iterations")
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def require_fit(model: nn.Module, task: Task, train: Batches) -> None:
    """Compute the loss of one example. Raises what the model raises if it does not fit the data."""
    model.eval()
    task.loss_fn(model, *first_rows(train, 1))
    model.train()


def require_step(settings: dict, model: nn.Module, task: Task, train: Batches,
                 autocast: Callable, accumulation: int = 1, clipping: Clipping | None = None
                 ) -> None:
    """Take a step with the optimizer of `settings` on a copy of `model`, with two examples, and
    with gradients clipped as `clipping` does.

    Raises ValueError if the step fails, or if the activations of a batch need more memory than the
    device has. Random states are restored.
    """
    examples = first_rows(train, ROWS)
    with random_numbers_kept(examples[0].device):
        model, cls = copy.deepcopy(model), optimizer_class(settings["name"])
        clips = None if clipping is None else Clipping(clipping.max_norm)
        optimizer = build_optimizer(settings, model, clips)
        for norm in model.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.eval()  # synchronized, they would wait for other processes
        saved: dict[int, int] = {}  # bytes of each storage that the backward pass needs

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        @torch.enable_grad()
        def closure(**_: bool) -> Any:
            model.zero_grad(set_to_none=True)
            saved.clear()
            with autocast(), torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
                loss = task.loss_fn(model, *examples)[0]
            backward(loss, model, graph=wants_graph(cls))
            return loss.detach()

        try:
            set_mode(optimizer, "train")
            with OperationBound(OPERATIONS * len(list(model.parameters()))):
                optimizer.step(closure)
        except Exception as error:
            if is_lost_peer(error):
                raise
            raise ValueError(f"{settings['name']} cannot take a step: {refusal(cls, error)}"
                             ) from error
    for p in model.parameters():
        saved.pop(p.untyped_storage().data_ptr(), None)
    _require_activations(sum(saved.values()) / len(examples[0]), train, accumulation)


def _require_activations(per_example: float, train: Batches, accumulation: int) -> None:
    examples = min(train.batch_size, train.examples) / size() / accumulation
    device = train.tensors[0].device
    needed, there = (number / 2**30 for number in (per_example * examples, total_memory(device)))
    if needed > there:
        raise ValueError(f"a batch of {train.batch_size} examples needs {needed:.3g} GiB for "
                         f"activations, this machine's {device.type} has {there:.3g} GiB: decrease "
                         "data.batch_size or increase experiment.accumulation")


def first_rows(train: Batches, rows: int) -> tuple[Tensor, ...]:
    """The first examples of the first batch."""
    return tuple(part[:rows] for part in next(train.epoch(0)))


@contextmanager
def random_numbers_kept(device: torch.device) -> Iterator[None]:
    """Restore the random states of torch, numpy and Python afterwards."""
    states = rng_state(device), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        set_rng_state(states[0], device)
        np.random.set_state(states[1])
        random.setstate(states[2])
