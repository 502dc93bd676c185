"""Gradient clipping by norm, per optimizer track, and its statistics."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optimizer.parts.base import grad_of, grads_of
from optimizer.parts.distributed.collective import total_norm


class Clipping:
    """A gradient filter: g <- g min(1, max_norm / ||g||), the norm over all tensors of a track
    (Pascanu et al. 2013, arXiv 1211.5063).

    The parameters of a matrix rule and those of the AdamW beside it are clipped separately: an
    orthogonalized update does not depend on the gradient's norm, so the norm of the matrices must
    not scale down the other gradients. The norms are the same on every process. Averages over an
    epoch stay on the device.
    """

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm
        self.reset()

    def reset(self) -> None:
        """Start a new epoch's averages."""
        self.sums: dict[str, Tensor] = {}
        self.steps = 0

    def __call__(self, optimizer: Optimizer) -> None:
        """Replace each `p.grad` by the clipped gradient, a new tensor: CautiousUpdate refuses
        gradients that are changed in place."""
        self.steps += 1
        for suffix, params in _tracks(optimizer).items():
            params = [p for p in params if p.grad is not None]
            norms = torch._foreach_norm(grads_of(params)) if params else [torch.zeros(())]
            norm = total_norm(torch.linalg.vector_norm(torch.stack(norms)))
            self._add("gradient_norm" + suffix, norm)
            self._add("clipped_share" + suffix, norm > self.max_norm)
            factor = (self.max_norm / norm).clamp(max=1)
            for p in params:
                p.grad = grad_of(p) * factor.to(p.device)

    def _add(self, name: str, value: Tensor) -> None:
        value = value.to(torch.float64)
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def means(self) -> dict[str, float]:
        """Mean raw norm and share of clipped steps, "gradient_norm" and "clipped_share"; where a
        matrix rule has AdamW beside it, "..._matrix" and "..._adamw"."""
        return {name: float(total) / self.steps for name, total in self.sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """The averages of an unfinished epoch."""
        return {"sums": self.sums, "steps": self.steps}

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        """Restore what `state_dict` returned."""
        self.sums = {name: total.to(device) for name, total in state["sums"].items()}
        self.steps = state["steps"]


def _tracks(optimizer: Optimizer) -> dict[str, list[Tensor]]:
    """Parameters by the suffix of their track, "_matrix" or "_adamw"; "" if there is one track."""
    tracks: dict[str, list[Tensor]] = {}
    for group in optimizer.param_groups:
        track = "_adamw" if group.get("track") == "adamw" else "_matrix"
        tracks.setdefault(track, []).extend(group["params"])
    return tracks if len(tracks) > 1 else {"": next(iter(tracks.values()))}
