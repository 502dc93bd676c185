"""Memory layout: whether torch's fused kernels may be used."""

from collections.abc import Iterable

from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether its elements fill a stretch of memory without gaps or overlaps, in any order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def may_fuse(tensors: Iterable[Tensor]) -> bool:
    """Whether fused kernels compute the right result: torch's read strided tensors as if they were
    dense (`nn.Parameter(x[..., 0])`)."""
    return all(is_dense(tensor) for tensor in tensors)
