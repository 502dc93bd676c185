"""Size of an optimizer's state in bytes, and checks of its values."""

import torch
from torch import Tensor
from torch.optim import Optimizer


def state_per_weight(optimizer: Optimizer) -> float:
    """Return bytes of state divided by bytes of parameters."""
    return sum(tensor.nbytes for tensor in state_of(optimizer)) / weight_bytes(optimizer)


def state_of(optimizer: Optimizer) -> list[Tensor]:
    """Return every state tensor of the optimizer's parameters."""
    return [tensor for group in optimizer.param_groups for p in group["params"]
            for tensor in _tensors(optimizer.state.get(p, {}))]


def has_nan(optimizer: Optimizer) -> bool:
    """Whether any state tensor contains NaN, which a sign-based rule would hide from the weights.

    Infinity is accepted: squares that overflow leave it, in torch's AdamW too. Cost: one host
    synchronization per device.
    """
    flags: dict[torch.device, list[Tensor]] = {}
    for tensor in state_of(optimizer):
        if tensor.is_floating_point():
            flags.setdefault(tensor.device, []).append(tensor.isnan().any())
    return any(bool(torch.stack(of_device).any()) for of_device in flags.values())


def weight_bytes(optimizer: Optimizer) -> int:
    """Return the bytes of all parameters of the optimizer."""
    return sum(p.nbytes for group in optimizer.param_groups for p in group["params"])


def _tensors(value: object) -> list[Tensor]:
    if torch.is_tensor(value):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for member in value for t in _tensors(member)] \
        if isinstance(value, list | tuple) else []
