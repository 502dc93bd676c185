"""CIFAR-10, Krizhevsky 2009: held on the device as bytes, augmented there a whole batch at a time.

Two layouts of the same images are read: `cifar-10-batches-py` (torchvision's, pickled) and
`cifar-10-batches-bin` (the published binary version: each image a label and 3072 bytes). The
Hugging Face hub's download is kept as the latter, torchvision's as the former.
"""

import hashlib
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data import DataError, download, locate, new_folder, read
from data.batches import Batches

PICKLED, BINARY = "cifar-10-batches-py", "cifar-10-batches-bin"
MD5 = {  # of the pickled files
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
SHA256 = {  # of the binary files: labels and images
    "data_batch_1": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
TEST = "test_batch"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # STD: mean over single images
SIZE = 32


@dataclass(frozen=True)
class CIFAR10:
    """train: batches of (images (batch, 3, 32, 32) float, labels (batch,)). eval: the images and
    labels to evaluate on every epoch. test: the 10,000 test images, if `eval` is held out from the
    training images. digest: file -> SHA-256 of its labels and images.
    """

    train: Batches
    eval: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor] | None = None
    num_classes: int = 10
    digest: dict[str, str] = field(default_factory=lambda: dict(SHA256))


def cifar10(
    batch_size: int = 256, crop: int = 4, flip: bool = True, cutout: int = 16, subset: float = 1.0,
    epochs_per_pass: int = 1, drop_last: bool = False, validation: float = 0.0, *, seed: int,
    device: torch.device,
) -> CIFAR10:
    """CIFAR-10 with the published augmentation: random crop after padding by `crop` black pixels,
    flip, normalization, and a random square of side `cutout` filled with the mean color (0 after
    normalization), clipped at the border. subset: share of the training images, the same ones for
    every seed. validation: share of the training images held out for evaluation; 0, as published,
    evaluates every epoch on the test set. drop_last, epochs_per_pass: see Batches.

    Raises ValueError for a crop outside [0, 32], a cutout outside [0, 64], a subset outside (0, 1]
    or a validation outside [0, 1), DataError for missing or damaged data.
    """
    for name, value, largest in (("crop", crop, SIZE), ("cutout", cutout, 2 * SIZE)):
        if not 0 <= value <= largest:
            raise ValueError(f"{name} must be in [0, {largest}], got {value}")
    if not 0 < subset <= 1:
        raise ValueError(f"subset must be in (0, 1], got {subset}")
    if not 0 <= validation < 1:
        raise ValueError(f"validation must be in [0, 1), got {validation}")
    folder = locate(PICKLED) or locate(BINARY) or download("CIFAR-10", PICKLED,
                                                           (_from_hub, _from_torchvision))
    parts = [_images(folder, name) for name in MD5 if name != TEST]
    # Shuffled with a fixed seed before splitting: the parts depend only on their shares.
    order = torch.randperm(sum(len(labels) for _, labels in parts),
                           generator=torch.Generator().manual_seed(0))
    count = round(validation * len(order))
    order, held_out = order.split([len(order) - count, count])
    kept = order[: max(1, round(subset * len(order)))]
    train = tuple(_rows(column, kept).to(device) for column in zip(*parts, strict=True))
    images, labels = (_rows(column, held_out).to(device) for column in zip(*parts, strict=True))
    del parts  # 154 MB, before the test images take as much
    change = partial(augment, crop=crop, flip=flip, cutout=cutout)
    batches = Batches(train, batch_size, seed, drop_last, change, epochs_per_pass)
    test_images, test_labels = _images(folder, TEST)
    test = normalize(test_images.to(device)), test_labels.to(device)
    if not count:
        return CIFAR10(batches, eval=test)
    return CIFAR10(batches, (normalize(images), labels), test)


def _rows(parts: Sequence[Tensor], chosen: Tensor) -> Tensor:
    """Rows `chosen` of the concatenation of `parts`, without making that concatenation."""
    rows = parts[0].new_empty(len(chosen), *parts[0].shape[1:])
    start = 0
    for part in parts:
        here = (chosen >= start) & (chosen < start + len(part))
        rows[here] = part[chosen[here] - start]
        start += len(part)
    return rows


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
    """Bytes (batch, 3, h, w) -> floats (bytes / 255 - MEAN) / STD, per channel."""
    mean, std = _statistics(images.device)
    return (images / 255).sub_(mean).div_(std)  # bytes divide to floats


@cache
def _statistics(device: torch.device) -> Tensor:
    """MEAN and STD, (2, 3, 1, 1), copied to a device once, since a copy synchronizes with it."""
    return torch.tensor((MEAN, STD), device=device).view(2, 3, 1, 1)


def _images(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 32, 32) uint8 and labels (n,) int64 of one file."""
    pixels, labels = (_pickled if folder.name == PICKLED else _binary)(folder, name)
    images = torch.from_numpy(np.array(pixels)).view(-1, 3, SIZE, SIZE)
    return images, torch.from_numpy(np.array(labels)).long()


def _pickled(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    content = read(folder / name, MD5[name], "md5")  # before unpickling: a pickle may run code
    batch = pickle.loads(content, encoding="bytes")
    return batch[b"data"], np.asarray(batch[b"labels"])


def _binary(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    content = read(folder / f"{name}.bin", SHA256[name])
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * SIZE**2)
    return records[:, 1:], records[:, 0]


def _from_hub() -> str:
    """Download uoft-cs/cifar10, whose images are PNGs and whose batches are in another order: each
    is identified by its checksum. Raises DataError for a batch with none of the checksums."""
    from datasets import load_dataset

    loaded = load_dataset("uoft-cs/cifar10")
    names = {checksum: name for name, checksum in SHA256.items()}
    with new_folder(BINARY) as folder:
        for split, batches in (("train", len(SHA256) - 1), ("test", 1)):
            rows = loaded[split]
            for start in range(0, len(rows), size := -(-len(rows) // batches)):
                records = _records(rows.select(range(start, min(start + size, len(rows)))))
                name = names.pop(hashlib.sha256(records).hexdigest(), None)
                if name is None:
                    raise DataError(f"images {start} to {start + size} of the {split} split do "
                                    "not match the checksum of any published file")
                (folder / f"{name}.bin").write_bytes(records)
    return BINARY


def _records(rows) -> bytes:
    """Encode rows of the hub in the binary layout: per image the label's byte, then the red, green
    and blue pixels."""
    return b"".join(bytes([row["label"]]) + np.asarray(row["img"]).transpose(2, 0, 1).tobytes()
                    for row in rows)


def _from_torchvision() -> str:
    from torchvision.datasets import CIFAR10 as Archive

    with new_folder(PICKLED) as folder:
        Archive(folder.parent, download=True)
    return PICKLED
