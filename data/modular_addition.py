"""Modular addition, (x + y) mod p: every pair once, a share of them for training.

Power et al. 2022, arXiv 2201.02177.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from data.batches import Batches


@dataclass(frozen=True)
class ModularAddition:
    """Tokens (pairs, 3) = (x, y, "=") and labels (pairs,), int64; "=" is token p."""

    train: Batches
    eval: tuple[Tensor, Tensor]
    vocab_size: int


def modular_addition(
    batch_size: int = 512, p: int = 113, fraction: float = 0.3, *, seed: int, device: torch.device
) -> ModularAddition:
    """All p * p pairs, int(fraction * p * p) of them, chosen by the seed, to train on.

    Raises ValueError for p below 2 or a fraction that leaves either side empty.
    """
    if p < 2:
        raise ValueError(f"p must be >= 2, got {p}")
    count = int(fraction * p * p)
    if not 0 < count < p * p:
        raise ValueError(f"fraction must leave pairs to train and to evaluate on, got {fraction}")
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    tokens = torch.cat([pairs, torch.full((p * p, 1), p)], dim=1)
    labels = pairs.sum(1) % p
    order = torch.randperm(p * p, generator=torch.Generator().manual_seed(seed))
    tokens, labels = tokens[order].to(device), labels[order].to(device)
    train = Batches((tokens[:count], labels[:count]), batch_size, seed)
    return ModularAddition(train, (tokens[count:], labels[count:]), vocab_size=p + 1)
