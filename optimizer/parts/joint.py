"""Several optimizers over disjoint parameters, driven as one."""

from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor
from torch.optim import Optimizer


class Joint(Optimizer):
    """Runs its parts one after the other on one gradient evaluation.

    One `param_groups`, one `state`, one `state_dict`, in torch's own format. For parts that need
    a single evaluation a step (torch.optim.Muon beside AdamW, say). Raises ValueError if two
    parts hold the same parameter.
    """

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        for part in parts:
            self.state.update(part.state)
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = list(islice(groups, len(part.param_groups)))
            part.state = self.state

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step of every part; the loss, None without a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore all parts."""
        super().load_state_dict(state_dict)
        self._share()
