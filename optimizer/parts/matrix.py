"""Base class of every matrix rule: the rule for the matrices and torch's AdamW for the rest.

A parameter is on one of two tracks. A group may name its track (`"track": "matrix"` or "adamw");
a group without one is split: tensors of two or more dimensions are matrices. Both tracks share
one `param_groups`, one `state` and one `state_dict`, in torch's format.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import AdamW

from . import checks
from .base import inner_step
from .distributed.collective import publish
from .first_order import BOOKKEEPING, FirstOrder, refuse_unknown
from .layout import may_fuse

ADAMW_KEYS = ("lr", "betas", "eps", "weight_decay")


class MatrixOptimizer(FirstOrder):
    """Subclasses give `update_group(params, group)` for the matrices; `defaults` are their options.

    An AdamW group without its own lr and weight_decay takes them from `defaults`; its betas and eps
    default to torch.optim.AdamW's.

    Raises ValueError for a group with an unknown key or track, a parameter in two groups, or a
    vector on the matrix track.
    """

    def __init__(self, params: Iterable, defaults: dict) -> None:
        self.adamw: AdamW | None = None
        super().__init__(params, defaults)

    def is_matrix(self, tensor: Tensor) -> bool:
        """Whether the matrix track accepts `tensor`: it has two or more dimensions."""
        return tensor.ndim >= 2

    def update(self) -> None:
        """Apply the gradients in `p.grad`: the matrix track's rule, then AdamW."""
        for group in self.param_groups:
            params = self.with_gradient(group)
            if params and group["track"] == "matrix":
                self.update_group(params, group)
        publish(self, (p for group in self.param_groups if group["track"] == "matrix"
                       for p in group["params"]))
        if self.adamw is not None:
            # AdamW is fused already, and torch.compile fails on integer step counts.
            torch.compiler.disable(inner_step)(self.adamw)

    def add_param_group(self, group: dict) -> None:
        """Add a group; without a track it is split into a matrix group and an AdamW group.

        Raises ValueError for an invalid group, see the class docstring."""
        for part in by_track(group):
            self._check_group(part)
            if part["track"] == "matrix":
                super().add_param_group(part)
            else:
                self._add_adamw_group(part)

    def _check_group(self, group: dict) -> None:
        accepted = self.defaults if group["track"] == "matrix" else ADAMW_KEYS
        refuse_unknown(group, accepted, f"a {group['track']} group of {type(self).__name__}")
        known = {id(p) for other in self.param_groups for p in other["params"]}
        for p in group["params"]:
            tensor = p[1] if isinstance(p, tuple) else p
            if id(tensor) in known:
                raise ValueError("some parameters appear in more than one parameter group")
            if group["track"] == "matrix" and not self.is_matrix(tensor):
                raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is not a matrix: "
                                 'put it on track "adamw"')

    def _add_adamw_group(self, group: dict) -> None:
        for key in ("lr", "weight_decay"):
            group.setdefault(key, self.defaults[key])
        checks.non_negative(**{key: group[key] for key in ("lr", "eps", "weight_decay")
                               if key in group})
        checks.pair_of_fractions(**{key: group[key] for key in ("betas",) if key in group})
        # Without the fused kernel torch uses foreach on a GPU and a loop on the CPU.
        group["fused"] = may_fuse(p[1] if isinstance(p, tuple) else p for p in group["params"])
        if self.adamw is None:
            self.adamw = AdamW([group])
            self.adamw.state = self.state
        else:
            self.adamw.add_param_group(group)
        self.param_groups.append(group)

    def after_loading(self) -> None:
        """Share the AdamW track's groups and state with torch's AdamW again; give options that the
        checkpoint does not have their defaults."""
        super().after_loading()
        # Loading adds "differentiable" to torch's defaults; it is no option of a group.
        options = {key: value for key, value in self.defaults.items() if key != "differentiable"}
        for group in self.param_groups:
            if group["track"] == "matrix":
                group.update({**options, **group})
        if self.adamw is not None:
            groups = [group for group in self.param_groups if group["track"] == "adamw"]
            # This also converts numeric step counts to tensors where the fused kernel needs them.
            self.adamw.__setstate__({"state": self.state, "param_groups": groups})


def by_track(group: dict) -> list[dict]:
    """Return [group] if it has a track or no parameters, else a matrix group and an AdamW group,
    if not empty. Raises ValueError for an unknown track, TypeError for a set and for an item that
    is not a tensor."""
    params = group["params"]
    if isinstance(params, set):
        raise TypeError("parameters must be in a list: the order of a set differs between runs")
    params = [params] if torch.is_tensor(params) else list(params)
    tensors = [p[1] if isinstance(p, tuple) else p for p in params]
    for tensor in tensors:
        if not torch.is_tensor(tensor):
            raise TypeError(f"parameters must be tensors, got {type(tensor).__name__}")
    if "track" in group:
        if group["track"] not in ("matrix", "adamw"):
            raise ValueError(f'track must be "matrix" or "adamw", got {group["track"]!r}')
        return [{**group, "params": params}]
    matrices = [p for p, t in zip(params, tensors, strict=True) if t.ndim >= 2]
    rest = [p for p, t in zip(params, tensors, strict=True) if t.ndim < 2]
    options = {key: value for key, value in group.items() if key != "params"}
    shared = {key: value for key, value in options.items() if key in ADAMW_KEYS + BOOKKEEPING}
    parts = [{**options, "params": matrices, "track": "matrix"}] if matrices or not rest else []
    return parts + ([{**shared, "params": rest, "track": "adamw"}] if rest else [])
