"""Several optimizers over disjoint parameters, driven as one."""

from itertools import islice
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from .base import Base, Closure, inner_step
from .first_order import FirstOrder
from .sharpness_aware import SharpnessAware


class Joint(FirstOrder):
    """Runs its parts one after the other on one gradient evaluation.

    The parts share one `param_groups`, one `state` and one `state_dict` in torch's format. Each
    part must need a single evaluation per step (for example torch.optim.Muon beside AdamW), except
    one that may be sharpness-aware (SophiaH): it moves its own parameters only, and the others get
    the gradient at the unmoved weights. Raises ValueError if two parts hold the same parameter, if
    two are sharpness-aware, and for a group that is added later.
    """

    def __init__(self, *parts: Optimizer) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        self.sharp = [part for part in parts
                      if isinstance(part, FirstOrder) and isinstance(part, SharpnessAware)]
        if len(self.sharp) > 1:
            raise ValueError("Joint takes one optimizer with a second gradient, got "
                             f"{' and '.join(type(part).__name__ for part in self.sharp)}")
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
        Base.add_param_group(self, group)  # without a check: the groups are those of the parts

    def gradient(self, closure: Closure | None) -> Tensor | None:
        """Leave the gradient of the update in `p.grad`; return the closure's first loss."""
        if not self.sharp:
            return super().gradient(closure)
        (sharp,) = self.sharp
        if closure is None:
            return sharp.gradient(None)
        first: dict[Tensor, Tensor | None] = {}

        def keeping(**options: Any) -> Tensor:
            loss = closure(**options)
            for p in rest:
                first.setdefault(p, p.grad)
                p.grad = None  # a second call must not add to the first gradient
            return loss

        rest = [p for part in self.parts if part is not sharp for group in part.param_groups
                for p in group["params"]]
        loss = sharp.gradient(keeping)
        for p in rest:
            p.grad = first[p]
        return loss

    def update(self) -> None:
        """Take one step of every part."""
        for part in self.parts:
            if part in self.sharp:  # `gradient` was the first half of its step
                part.update()
                part.after_step()
            else:
                inner_step(part)

    def after_loading(self) -> None:
        """Share groups and state with the parts again, and let them finish loading."""
        self._share()
        for part in self.parts:  # torch's method turns numeric step counts into tensors
            part.__setstate__({"state": part.state, "param_groups": part.param_groups})
            if isinstance(part, FirstOrder):
                part.after_loading()
