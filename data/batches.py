"""Shuffled minibatches of tensors on the device, in an order computed from seed and epoch."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

IGNORED = -100  # a target without loss: ignore_index of torch's cross entropy

Augment = Callable[[Tensor, torch.Generator], Tensor]


class Batches:
    """Minibatches of a training set, one epoch at a time.

    The order is a pure function of (seed, epoch), the augmentation of a batch one of (seed, epoch,
    batch). A resumed run therefore has no state to restore here, and skipping batches is free.
    tensors: equal first lengths, all on one device. augment: changes the first tensor of a batch.
    epochs_per_pass: the number of equal epochs in one shuffled pass over the data, so that a short
    run is evaluated more often; a remainder is left out of that pass.
    Raises ValueError for a batch_size or epochs_per_pass outside [1, 2**31) or an epoch without a
    batch.
    """

    most_epochs = math.inf  # finite if each example is used only once

    def __init__(self, tensors: tuple[Tensor, ...], batch_size: int, seed: int,
                 drop_last: bool = False, augment: Augment | None = None,
                 epochs_per_pass: int = 1) -> None:
        for name, value in {"batch_size": batch_size, "epochs_per_pass": epochs_per_pass}.items():
            if not 1 <= value < 2**31:
                raise ValueError(f"{name} must be in [1, 2**31), got {value}")
        self.tensors, self.batch_size, self.seed = tensors, batch_size, seed
        self.augment, self.epochs_per_pass = augment, epochs_per_pass
        rows = len(tensors[0]) // epochs_per_pass
        self.examples = rows - rows % batch_size if drop_last else rows
        if self.examples == 0:
            raise ValueError(f"no batch: batch_size is {batch_size}, an epoch has {rows} examples")

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return -(-self.examples // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches of one epoch (from 0), from batch `start` on."""
        device = self.tensors[0].device
        # Drawn on the CPU, so that every device sees the same order.
        rows = len(self.tensors[0])
        whole, part = divmod(epoch, self.epochs_per_pass)
        order = torch.randperm(rows, generator=seeded("cpu", self.seed, whole))
        first = part * (rows // self.epochs_per_pass)
        chunks = order[first : first + self.examples].to(device).split(self.batch_size)
        for index in range(start, len(chunks)):
            batch = tuple(tensor[chunks[index]] for tensor in self.tensors)
            if self.augment is not None:
                generator = seeded(device, self.seed, epoch, index + 1)
                batch = (self.augment(batch[0], generator), *batch[1:])
            yield batch


def seeded(device: torch.device | str, *keys: int) -> torch.Generator:
    """Return a torch generator seeded by a hash of `keys`, so that similar keys are unrelated."""
    (word,) = np.random.SeedSequence(keys).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(word) % 2**63)
