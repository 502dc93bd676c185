"""Cross entropy of a linear head, chunk by chunk: the full logits are never materialized.

Loss and gradient come from one pass over each chunk of positions: with P its probabilities and Y
the one-hot targets, dL/dlogits = P - Y, so nothing is computed twice. For 2040 tokens and 40479
classes the logits and their gradient alone would be 660 MB.
"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from data.batches import IGNORED

CHUNK_BYTES = {"cpu": 2**26, "cuda": 2**29}  # of float32 logits; smaller chunks slow the products


@runtime_checkable
class Factored(Protocol):
    """A model that exposes its last hidden states and its output matrix separately."""

    @property
    def head_weight(self) -> Tensor:
        """Output matrix (vocab_size, width)."""

    def features(self, inputs: Tensor) -> Tensor:
        """Last hidden states (batch, sequence, width) of tokens (batch, sequence)."""


def linear_cross_entropy(features: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log softmax(features weight^T)[target], nats, over the targets that are not IGNORED;
    0 if there are none.

    features (positions, width), weight (classes, width), targets (positions,) int64. Products in
    autocast's dtype where it is on, sums in float32 or above. Differentiable once.
    """
    return _LinearCrossEntropy.apply(features, weight, targets)


@torch.no_grad()
def token_losses(features: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(features weight^T)[target] of each position, (positions,), no gradients."""
    features, weight = _for_products(features, weight)
    return torch.cat([F.cross_entropy(_wide(part @ weight.T), target, reduction="none")
                      for part, target in _chunks(len(weight), features, targets)])


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        features, weight = _for_products(features, weight)
        kept = (targets != IGNORED).unsqueeze(1)
        classes = targets.unsqueeze(1).masked_fill(~kept, 0)
        to_features = torch.empty_like(features)
        to_weight = _wide(torch.zeros_like(weight))
        total = to_weight.new_zeros(())
        chunks = _chunks(len(weight), features, classes, kept, to_features)
        for part, target, mask, gradient in chunks:
            logs = _wide(part @ weight.T).log_softmax(-1)
            total -= (logs.gather(1, target) * mask).sum()
            surplus = logs.exp_().scatter_add_(1, target, logs.new_full(target.shape, -1.0))
            surplus = surplus.to(weight.dtype)
            torch.mm(surplus, weight, out=gradient)
            if to_weight.dtype == weight.dtype:
                to_weight.addmm_(surplus.T, part * mask)
            else:
                to_weight += surplus.T @ (part * mask)
        ctx.count = kept.sum().clamp_min(1)  # without targets the loss is 0
        ctx.save_for_backward(to_features.mul_(kept), to_weight)
        return total / ctx.count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        to_features, to_weight = ctx.saved_tensors
        scale = grad / ctx.count
        return to_features * scale, to_weight * scale, None


def _chunks(classes: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors, split along their positions into as few equal chunks as fit CHUNK_BYTES."""
    positions = len(tensors[0])
    parts = -(-positions * classes * 4 // CHUNK_BYTES[tensors[0].device.type])
    yield from zip(*(tensor.tensor_split(max(1, parts)) for tensor in tensors), strict=True)


def _for_products(*tensors: Tensor) -> list[Tensor]:
    """Cast the operands of a product as autocast would, which skips custom autograd functions."""
    device = tensors[0].device.type
    if torch.is_autocast_enabled(device) and tensors[0].dtype != torch.float64:
        return [tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors]
    return list(tensors)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
