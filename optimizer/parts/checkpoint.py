"""Exact loading of an optimizer's state, and conversion of checkpoints of version 0.1."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

# Version 0.1 stored these as one list over all parameters; the values are the keys in `state` now.
PER_PARAMETER = {"shear": "shear_force", "slow": "slow_weight"}


def upgraded(state_dict: dict, old_key: str, scalars_key: str | None) -> dict:
    """Convert a state_dict of version 0.1 to the current format; return a current one unchanged.

    Version 0.1 stored scalars and the tensors of wrappers under the top-level key `old_key`. Now
    scalars are in param_groups[0]["scalars"][scalars_key] and tensors in "state". The argument is
    not modified.
    """
    if old_key not in state_dict:
        return state_dict
    groups = [dict(group) for group in state_dict["param_groups"]]
    state = {index: dict(entry) for index, entry in state_dict["state"].items()}
    scalars: dict[str, Any] = {}
    for key, value in state_dict[old_key].items():
        if key in PER_PARAMETER:
            indices = [index for group in groups for index in group["params"]]
            for index, tensor in zip(indices, value, strict=True):
                # A weight without an entry has never had a gradient, unless no weight has an entry
                # (SGD keeps no state).
                if tensor is not None and (index in state or not state_dict["state"]):
                    state.setdefault(index, {})[PER_PARAMETER[key]] = tensor
        else:
            scalars |= value if isinstance(value, dict) else {key: value}
    if scalars_key is not None:
        groups[0]["scalars"] = {**groups[0].get("scalars", {}), scalars_key: scalars}
    rest = {key: value for key, value in state_dict.items() if key != old_key}
    return {**rest, "state": state, "param_groups": groups}


def restore_exactly(optimizer: Optimizer, state_dict: dict,
                    has_own_dtype: Callable[[str], bool]) -> None:
    """Copy the tensors of `state_dict` into the optimizer's state and keep their dtype. A dtype
    narrower than the parameter's becomes the parameter's, unless `has_own_dtype(key)`."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    indices = [index for group in state_dict["param_groups"] for index in group["params"]]
    for index, p in zip(indices, params, strict=True):
        for key, value in state_dict["state"].get(index, {}).items():
            if torch.is_tensor(value):
                # torch has put the step count on the device where its AdamW needs it.
                device = optimizer.state[p][key].device if key == "step" else p.device
                narrow = (value.is_floating_point() and p.is_floating_point()
                          and value.itemsize < p.itemsize and not has_own_dtype(key))
                optimizer.state[p][key] = value.to(device, p.dtype if narrow else value.dtype,
                                                   copy=True)
