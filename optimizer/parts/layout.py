"""Memory layout of tensors: whether torch's fused kernels give correct results."""

from collections.abc import Iterable

from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one block of memory without gaps or overlaps, in any order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def may_fuse(tensors: Iterable[Tensor]) -> bool:
    """Whether fused kernels are correct for all `tensors`: torch's kernels treat strided tensors,
    such as `nn.Parameter(x[..., 0])`, as dense."""
    return all(is_dense(tensor) for tensor in tensors)
