"""Several optimizers over disjoint parameters, driven as one."""

from itertools import islice

from torch.optim import Optimizer

from .base import inner_step
from .first_order import FirstOrder


class Joint(FirstOrder):
    """Runs its parts one after the other on one gradient evaluation.

    The parts share one `param_groups`, one `state` and one `state_dict` in torch's format. Each
    part must need a single evaluation per step (for example torch.optim.Muon beside AdamW). Raises
    ValueError if two parts hold the same parameter, and for a group that is added later.
    """

    def __init__(self, *parts: Optimizer) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            self.state.update(part.state)
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = list(islice(groups, len(part.param_groups)))
            part.state = self.state

    def add_param_group(self, group: dict) -> None:
        """Add a group of a part during construction. Raises ValueError afterwards."""
        if hasattr(self, "parts"):
            raise ValueError("Joint cannot take a new parameter group: add it to an optimizer "
                             "before joining them as parts")
        super().add_param_group(group)

    def update(self) -> None:
        """Take one step of every part."""
        for part in self.parts:
            inner_step(part)

    def after_loading(self) -> None:
        """Share groups and state with the parts again."""
        self._share()
        for part in self.parts:  # torch's method turns numeric step counts into tensors
            part.__setstate__({"state": part.state, "param_groups": part.param_groups})
