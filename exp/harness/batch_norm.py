"""Synchronized batch norm on CPU and CUDA, and recomputation of running statistics."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


def synchronized(model: nn.Module, device: torch.device) -> nn.Module:
    """Replace every batch norm of `model` by a synchronized one with the same parameters and
    buffers. Returns the model."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm):
                setattr(parent, name, GlooBatchNorm(child))
    return model


class GlooBatchNorm(_BatchNorm):
    """SyncBatchNorm for CPU tensors, which torch's class rejects.

    norm: the batch norm to replace. Input (batch, channels, ...); the shards of a batch may differ
    in size.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=False,
                         track_running_stats=False)
        self.__dict__.update(norm.__dict__)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize by the statistics of all shards in training mode, else by the running ones.
        Statistics are computed in float32 or float64, as in torch."""
        if not self.training and self.running_mean is not None:
            return super().forward(x)
        dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
        others = [dim for dim in range(x.ndim) if dim != 1]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        count = x.new_tensor([x.numel() / x.shape[1]])
        *total, count = _AllSum.apply(torch.cat([x.sum(others), count])).split(
            [x.shape[1], 1])
        mean = total[0] / count
        centered = x - mean.view(shape)
        variance = _AllSum.apply(centered.square().sum(others)) / count
        if self.track_running_stats:
            self._track(mean.detach(), (variance * count / (count - 1).clamp_min(1)).detach())
        y = centered * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None and self.running_mean is not None \
            and self.running_var is not None  # track_running_stats
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1 / int(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)

    def _check_input_dim(self, x: Tensor) -> None:
        """Accept any input of at least two dimensions."""


class _AllSum(torch.autograd.Function):
    """Sum over all processes. The gradient is summed too, because every process uses the sum."""

    @staticmethod
    def forward(ctx, part: Tensor) -> Tensor:
        total = part.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


@contextmanager
def new_statistics(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Reset the running statistics; inside, they become the mean over the passes in training mode,
    as in torch.optim.swa_utils.update_bn."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
