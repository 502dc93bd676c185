"""DiLoCo, Douillard et al. 2023, arXiv 2311.08105 (LocalSGD: 1805.09767): infrequent averaging."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from .lookahead import Lookahead
from .parts.averaged import TwoWeights
from .parts.distributed.sharded import on_cpu

__all__ = ["DiLoCo"]

SEARCH_SPACE = {"k": [10, 50, 500], "alpha": (0.3, 1.0, "linear")}
COST = {"gradient_evaluations": 1, "state_tensors": 2}
TESTED_AGAINST = "by hand, plain torch in one process, Lookahead"


class DiLoCo(TwoWeights, Lookahead):
    """Each process takes k steps of `base` with the gradients of its own part of the batches. Then
    one step of SGD with Nesterov momentum mu, on the mean of all processes' changes, follows:

        d = mean of slow - fast,   v <- mu v + d,   slow <- slow - alpha (d + mu v),   fast <- slow

    fast are the weights of a process; all processes continue from slow. LocalSGD is alpha = 1 and
    mu = 0. The state of `base` stays in its process. `eval()` puts the slow weights into the model;
    batch norms still compute their statistics over all processes. With one process this is
    `Lookahead` with an outer momentum.

    The closure must accept `synchronize=False`, which leaves each process its own gradient. The
    state_dict of process 0 contains the state and weights of every process. Loaded by another
    number of processes, training continues from the slow weights with the state of process 0.

    Cost: no additional gradient evaluation, 2 state tensors per parameter; every k steps one
    all-reduce of the weights (`diagnostics` counts its bytes) instead of k of gradients.
    Raises ValueError for an invalid argument, a `base` with its own weights for evaluation, and a
    step in eval mode.
    """

    local = True  # uses each process's own gradients
    counters = {"steps": 0, "evaluating": 0, "bytes": 0}

    def __init__(self, base: Optimizer, k: int = 500, alpha: float = 0.7,
                 outer_momentum: float = 0.9) -> None:
        super().__init__(base, k, alpha, outer_momentum)

    @property
    def diagnostics(self) -> dict[str, float]:
        """Diagnostics of `base`, and the bytes of weights this process has sent for averaging."""
        return {**super().diagnostics, "outer_bytes": self.scalars["bytes"]}

    def inner_closure(self, closure: Callable[[], Tensor] | None) -> Callable[[], Tensor] | None:
        """Return the closure without gradient communication. Raises ValueError in eval mode."""
        closure = super().inner_closure(closure)
        return closure if closure is None or processes() == 1 else partial(closure,
                                                                           synchronize=False)

    def evaluated(self, p: Tensor) -> Tensor | None:
        """Return the slow weight."""
        return self.state[p].get("slow_weight")

    def _step_back(self, slow: list[Tensor], fast: list[Tensor]) -> None:
        if processes() > 1:
            self.scalars["bytes"] += average(fast)
        super()._step_back(slow, fast)

    def packed(self) -> dict:
        """Return the state_dict of `base`; on process 0 with the state_dict and weights of each
        process under "processes"."""
        state_dict = super().packed()
        if processes() == 1:
            return state_dict
        parts = [None] * processes() if dist.get_rank() == 0 else None
        dist.gather_object(on_cpu((state_dict, [p.detach() for p in self.parameters])), parts)
        return state_dict if parts is None else {**state_dict, "processes": parts}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict) -> None:
        """Restore this process's state and weights; with another number of processes the state of
        process 0 and the slow weights."""
        parts = state_dict.get("processes", [])
        weights = None
        if parts and len(parts) == processes():
            state_dict, weights = parts[dist.get_rank()]
        super().load_state_dict({key: state_dict[key] for key in state_dict if key != "processes"})
        for number, p in enumerate(self.parameters if parts else ()):
            state = self.state.get(p, {})
            if weights is not None:
                p.copy_(weights[number])
            elif "slow_weight" in state:
                state.pop("trained_weight", None)
                p.copy_(state["slow_weight"])


def processes() -> int:
    """Return the world size; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def average(tensors: Sequence[Tensor]) -> int:
    """Replace `tensors` in place by their means over the processes; return the bytes sent."""
    sent = 0
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        members = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.flatten() for t in members])
        dist.all_reduce(flat)
        flat /= processes()
        sent += flat.numel() * flat.element_size()
        for t, mean in zip(members, flat.split([t.numel() for t in members]), strict=True):
            t.copy_(mean.view_as(t))
    return sent
