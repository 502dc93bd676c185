"""DiLoCo, Douillard et al. 2023, arXiv 2311.08105 (LocalSGD: 1805.09767): rare averages."""

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
    """k steps of `base` in each process, by the gradients of its own part of the batches; then one
    step of SGD with Nesterov momentum mu by the mean of the processes' moves, from where all go on:

        d = mean of slow - fast,   v <- mu v + d,   slow <- slow - alpha (d + mu v),   fast <- slow

    LocalSGD has alpha = 1 and mu = 0. The state of `base` stays with its process. The slow weights
    are those that `eval()` puts into the model; batch norms still take their statistics over all
    processes. With one process it is `Lookahead` with an outer momentum.

    The closure must accept `synchronize=False`, which leaves each process its own gradient; a
    state_dict holds what every process has, and is complete on process 0. Another number of
    processes goes on from the slow weights, with the state that process 0 had.

    Cost: no gradient evaluation of its own, 2 state tensors per parameter; every k steps one
    all-reduce of the weights (`diagnostics` counts its bytes) in the place of k of gradients.
    """

    local = True  # takes each process's own gradients
    counters = {"steps": 0, "evaluating": 0, "bytes": 0}

    def __init__(self, base: Optimizer, k: int = 500, alpha: float = 0.7,
                 outer_momentum: float = 0.9) -> None:
        super().__init__(base, k, alpha, outer_momentum)

    @property
    def diagnostics(self) -> dict[str, float]:
        """Those of `base`, and the bytes of weights that this process has given to be averaged."""
        return {**super().diagnostics, "outer_bytes": self.scalars["bytes"]}

    def inner_closure(self, closure: Callable[[], Tensor] | None) -> Callable[[], Tensor] | None:
        """The closure without communication. Raises ValueError in eval mode."""
        closure = super().inner_closure(closure)
        return closure if closure is None or processes() == 1 else partial(closure,
                                                                           synchronize=False)

    def evaluated(self, p: Tensor) -> Tensor | None:
        """The slow weight."""
        return self.state[p].get("slow_weight")

    def _step_back(self, slow: list[Tensor], fast: list[Tensor]) -> None:
        if processes() > 1:
            self.scalars["bytes"] += average(fast)
        super()._step_back(slow, fast)

    def packed(self) -> dict:
        """The state_dict of `base`; on process 0 also that and the weights of every process."""
        mine = super().packed()
        if processes() == 1:
            return mine
        parts = [None] * processes() if dist.get_rank() == 0 else None
        dist.gather_object(on_cpu((mine, [p.detach() for p in self.parameters])), parts)
        return mine if parts is None else {**mine, "processes": parts}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict) -> None:
        """Restore this process's part, with the weights that it had."""
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
    """World size; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def average(tensors: Sequence[Tensor]) -> int:
    """Replace tensors by their means over the processes; the bytes of what was sent."""
    sent = 0
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        alike = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.flatten() for t in alike])
        dist.all_reduce(flat)
        flat /= processes()
        sent += flat.numel() * flat.element_size()
        for t, mean in zip(alike, flat.split([t.numel() for t in alike]), strict=True):
            t.copy_(mean.view_as(t))
    return sent
