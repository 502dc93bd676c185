"""SWA, Izmailov et al. 2018, arXiv 1803.05407: the mean of weights sampled at equal intervals."""

from torch import Tensor
from torch.optim import Optimizer

from .parts import checks
from .parts.averaged import Averaged, wide

__all__ = ["SWA"]

SEARCH_SPACE = {"every": [1, 10, 100]}
COST = {"gradient_evaluations": 1, "state_tensors": 1}
TESTED_AGAINST = "plain numpy"


class SWA(Averaged):
    """Evaluates the mean of the weights after steps start, start + every, start + 2 every ...
    (with start 0: every, 2 every ...); before the first of these steps the weights themselves.

    Usual setting: start in the last quarter of a run, `every` one epoch, a constant lr from start.

    Cost: no additional gradient evaluation; 1 state tensor per parameter, 2 while evaluating.
    Raises ValueError for an invalid argument, a `base` with its own weights for evaluation, and a
    step in eval mode.
    """

    def __init__(self, base: Optimizer, every: int = 10, start: int = 0) -> None:
        checks.at_least(1, every=every)
        checks.at_least(0, start=start)
        super().__init__(base)
        self.every, self.start = every, start
        self.keep_scalars(steps=0, snapshots=0, evaluating=0)

    @property
    def has_average(self) -> bool:
        """Whether there is a snapshot."""
        return self.scalars["snapshots"] > 0

    def is_due(self) -> bool:
        """Whether the mean includes the weights after the current step."""
        since = self.scalars["steps"] - self.start
        return since >= 0 and since % self.every == 0

    def collect(self, p: Tensor, state: dict) -> None:
        """Update the running mean."""
        if "average" not in state:
            state["average"] = wide(p)
        elif not self.scalars["snapshots"]:
            state["average"].copy_(p)
        elif self.is_due():
            average = state["average"]
            average.lerp_(p.to(average.dtype), 1 / (self.scalars["snapshots"] + 1))

    def counted(self) -> None:
        """Count the snapshot."""
        self.scalars["snapshots"] += self.is_due()

    def evaluated(self, p: Tensor) -> Tensor | None:
        """Return the mean; None before the first snapshot."""
        return self.state[p].get("average") if self.scalars["snapshots"] else None
