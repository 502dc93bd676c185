"""Tensors kept between steps in fewer bytes: bfloat16, or 8-bit blocks (Dettmers et al. 2021,
arXiv 2110.02861, with a linear code: what is kept here is a direction, its small entries count
little)."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Storage = Literal["full", "bf16", "8bit"]

BLOCK = 256  # entries that share a scale: 1.016 bytes an entry


def stored(tensor: Tensor, storage: str) -> dict[str, Tensor]:
    """What to keep of `tensor`: {"value"}, for "8bit" int8 (blocks, BLOCK) and {"scale"},
    (blocks, 1), the largest magnitude of each block / 127. Error per entry: at most scale / 2."""
    if storage != "8bit":
        return {"value": tensor.to(torch.bfloat16) if storage == "bf16" else tensor}
    # In bfloat16 the scale may be rounded down so far that 128 comes out, which int8 has not.
    flat = tensor.flatten().to(torch.promote_types(tensor.dtype, torch.float32))
    blocks = F.pad(flat, (0, -tensor.numel() % BLOCK)).view(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    value = (blocks / scale.clamp_min(torch.finfo(scale.dtype).tiny)).round_()
    return {"value": value.to(torch.int8), "scale": scale}


def restored(value: Tensor, scale: Tensor | None, like: Tensor) -> Tensor:
    """The tensor that `stored` was given, of the shape and dtype of `like`."""
    if scale is None:
        return value.to(like.dtype)
    return (value * scale).flatten()[: like.numel()].view_as(like).to(like.dtype)
