"""Shuffled minibatches of tensors that live on the device, in an order that needs no state."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

IGNORED = -100  # a target that counts for nothing: torch's cross entropy leaves it out

Augment = Callable[[Tensor, torch.Generator], Tensor]


class Batches:
    """Minibatches of a training set, an epoch at a time.

    The order is a pure function of (seed, epoch), each batch's augmentation one of (seed, epoch,
    batch): a resumed run needs nothing from here, and skipping to a batch costs nothing.
    tensors: equal first lengths, all on one device. augment: changes the first tensor of a batch.
    epochs_per_pass: equal parts of one shuffled order that are an epoch each, so that a small run
    is evaluated more often; what is left over by them waits for another order.
    Raises ValueError for a batch_size or epochs_per_pass outside [1, 2**31) or an epoch without a
    batch.
    """

    most_epochs = math.inf  # a set of which each example is used once has a last one

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
            raise ValueError(f"batch_size {batch_size} leaves no batch of {rows} examples")

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-self.examples // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """The batches of one epoch, from batch `start` on."""
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
    """A torch generator whose seed mixes the keys, so that neighbouring ones are unrelated."""
    (word,) = np.random.SeedSequence(keys).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(word) % 2**63)
