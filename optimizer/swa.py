"""SWA, Izmailov et al. 2018, arXiv 1803.05407: the mean of the weights every so many steps."""

from torch import Tensor
from torch.optim import Optimizer

from .parts import checks
from .parts.averaged import Averaged, wide

__all__ = ["SWA"]

SEARCH_SPACE = {"every": [1, 10, 100]}
COST = {"gradient_evaluations": 1, "state_tensors": 1}
TESTED_AGAINST = "plain numpy"


class SWA(Averaged):
    """Evaluates the mean of the weights after the steps start, start + every, start + 2 every ...
    (with start 0 from `every` on); before the first of them the weights themselves.

    Usual: start in the last quarter of a run, `every` an epoch, with a constant rate from there.

    Cost: no gradient evaluation of its own; 1 state tensor per parameter, 2 while evaluating.
    """

    def __init__(self, base: Optimizer, every: int = 10, start: int = 0) -> None:
        checks.at_least(1, every=every)
        checks.at_least(0, start=start)
        super().__init__(base)
        self.every, self.start = every, start
        self.keep_scalars(steps=0, snapshots=0, evaluating=0)

    @property
    def has_average(self) -> bool:
        """Whether there is a mean of more than one."""
        return self.scalars["snapshots"] > 1

    def is_due(self) -> bool:
        """Whether the step that has just been made counts."""
        since = self.scalars["steps"] - self.start
        return since >= 0 and since % self.every == 0

    def collect(self, p: Tensor, state: dict) -> None:
        """The running mean."""
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
        """The mean."""
        return self.state[p].get("average") if self.scalars["snapshots"] else None
