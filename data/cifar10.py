"""CIFAR-10, Krizhevsky 2009: held on the device as bytes, augmented there a whole batch at a time.

Found as torchvision's `cifar-10-batches-py`, every file checked against its MD5 sum.
"""

import hashlib
import pickle
import tempfile
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data import CACHE, DataError, locate, move_into_cache
from data.batches import Batches

FOLDER = "cifar-10-batches-py"
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
SIZE = 32


@dataclass(frozen=True)
class CIFAR10:
    """Training batches (images (batch, 3, 32, 32) float, labels), the images to evaluate on every
    epoch, and, where those are held-out training images, the 10,000 test images."""

    train: Batches
    eval: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor] | None = None
    num_classes: int = 10


def cifar10(
    batch_size: int = 256, crop: int = 4, flip: bool = True, cutout: int = 16, subset: float = 1.0,
    epochs_per_pass: int = 1, drop_last: bool = False, validation: float = 0.0, *, seed: int,
    device: torch.device,
) -> CIFAR10:
    """The published augmentation: crop with `crop` black pixels around, flip, normalize, then a
    square of `cutout` pixels filled with the mean colour (0 after normalization), clipped at the
    border. `subset` is the share of training images, the same ones for every seed;
    epochs_per_pass: see Batches.
    validation: the share of training images held out to choose by; 0, as published, evaluates
    every epoch on the test set.

    Raises ValueError for a negative size, a subset outside (0, 1] or a validation outside [0, 1),
    DataError for missing data.
    """
    if crop < 0 or cutout < 0:
        raise ValueError(f"crop and cutout must be >= 0, got {crop}, {cutout}")
    if not 0 < subset <= 1:
        raise ValueError(f"subset must be in (0, 1], got {subset}")
    if not 0 <= validation < 1:
        raise ValueError(f"validation must be in [0, 1), got {validation}")
    folder = locate(FOLDER) or _fetch()
    images, labels = _read(folder, [name for name in MD5 if name != "test_batch"])
    # Shuffled with a fixed seed before cutting: the parts depend on nothing but their shares.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order, held_out = order.split([len(order) - (held := round(validation * len(order))), held])
    kept = order[: max(1, round(subset * len(order)))]
    train = (images[kept].to(device), labels[kept].to(device))
    change = partial(augment, crop=crop, flip=flip, cutout=cutout)
    batches = Batches(train, batch_size, seed, drop_last, change, epochs_per_pass)
    test = _evaluated(*_read(folder, ["test_batch"]), device)
    if not held:
        return CIFAR10(batches, eval=test)
    return CIFAR10(batches, _evaluated(images[held_out], labels[held_out], device), test)


def _evaluated(images: Tensor, labels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    return normalize(images.to(device)), labels.to(device)


def augment(images: Tensor, generator: torch.Generator, crop: int, flip: bool,
            cutout: int) -> Tensor:
    """Random crop, flip, normalization and cutout of a batch (batch, 3, 32, 32) of bytes."""
    batch, device = len(images), images.device

    def draw(high: int) -> Tensor:
        return torch.randint(high, (batch, 1), generator=generator, device=device)

    span = torch.arange(SIZE, device=device)
    rows = span + draw(2 * crop + 1)
    columns = span.expand(batch, SIZE)
    if flip:
        columns = torch.where(draw(2) == 1, SIZE - 1 - span, span)
    columns = columns + draw(2 * crop + 1)
    side = SIZE + 2 * crop
    index = (rows[:, :, None] * side + columns[:, None, :]).view(batch, 1, -1)
    padded = F.pad(images, (crop, crop, crop, crop)).flatten(2)
    result = normalize(padded.gather(2, index.expand(-1, 3, -1)).view(-1, 3, SIZE, SIZE))
    if cutout:
        half = cutout // 2
        outside = [(span < centre - half) | (span >= centre + half)
                   for centre in (draw(SIZE), draw(SIZE))]
        result *= (outside[0][:, :, None] | outside[1][:, None, :])[:, None]
    return result


def normalize(images: Tensor) -> Tensor:
    """Bytes (batch, 3, h, w) -> floats with the training set's mean 0 and deviation 1."""
    mean, std = _statistics(images.device)
    return (images.float() / 255 - mean) / std


@cache
def _statistics(device: torch.device) -> Tensor:
    """Mean and deviation, (2, 3, 1, 1), sent to a device once: a copy waits for the device."""
    return torch.tensor((MEAN, STD), device=device).view(2, 3, 1, 1)


def _read(folder: Path, names: list[str]) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 32, 32) uint8 and labels (n,) int64 of some of the files."""
    images, labels = [], []
    for name in names:
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise DataError(f"CIFAR-10 is incomplete: cannot read {folder / name}") from error
        # Checked before unpickling: a pickle may run code.
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != MD5[name]:
            raise DataError(f"{folder / name} is damaged: its MD5 sum is not {MD5[name]}")
        batch = pickle.loads(content, encoding="bytes")
        images.append(torch.from_numpy(np.asarray(batch[b"data"])).view(-1, 3, SIZE, SIZE))
        labels.append(torch.tensor(batch[b"labels"]))
    return torch.cat(images), torch.cat(labels)


def _fetch() -> Path:
    try:
        from torchvision.datasets import CIFAR10 as Archive

        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
            Archive(temporary, download=True)
            return move_into_cache(Path(temporary) / FOLDER, FOLDER)
    except Exception as error:  # a network has many ways to fail
        raise DataError(f"CIFAR-10 is not there and cannot be fetched ({error}): put the folder "
                        f"{FOLDER} into data/cache/ or into $ARS_DATA") from error
