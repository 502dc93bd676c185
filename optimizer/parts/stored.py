"""Compressed storage of state tensors: bfloat16, or 8-bit blocks (Dettmers et al. 2021, arXiv
2110.02861, but with a linear code: the tensors are directions, whose small entries matter
little)."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Storage = Literal["full", "bf16", "8bit"]

BLOCK = 256  # entries that share one float32 scale: 1.016 bytes per entry


def stored(tensor: Tensor, storage: str) -> dict[str, Tensor]:
    """Return the stored form of `tensor`: {"value"}, and for "8bit" {"value", "scale"}.

    With "8bit" value is int8 (blocks, BLOCK) and scale (blocks, 1) is the largest magnitude of each
    block / 127; the error of an entry is at most scale / 2."""
    if storage != "8bit":
        return {"value": tensor.to(torch.bfloat16) if storage == "bf16" else tensor}
    # A scale in bfloat16 could be rounded down so far that a value becomes 128, which overflows.
    flat = tensor.flatten().to(torch.promote_types(tensor.dtype, torch.float32))
    blocks = F.pad(flat, (0, -tensor.numel() % BLOCK)).view(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    value = (blocks / scale.clamp_min(torch.finfo(scale.dtype).tiny)).round_()
    return {"value": value.to(torch.int8), "scale": scale}


def restored(value: Tensor, scale: Tensor | None, like: Tensor) -> Tensor:
    """Return the tensor compressed by `stored`, in the shape and dtype of `like`."""
    if scale is None:
        return value.to(like.dtype)
    return (value * scale).flatten()[: like.numel()].view_as(like).to(like.dtype)
