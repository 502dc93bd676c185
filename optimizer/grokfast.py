"""GrokFast, Lee et al. 2024, arXiv 2405.20233: the slow part of the gradient is amplified."""

from torch import Tensor
from torch.optim import Optimizer

from .parts import checks
from .parts.filtered import FilterWrapper

__all__ = ["GrokFast"]

SEARCH_SPACE = {"alpha": [0.9, 0.98, 0.99], "lamb": (0.5, 5.0, "log")}
COST = {"gradient_evaluations": 1, "state_tensors": 1}
TESTED_AGAINST = "plain numpy"


class GrokFast(FilterWrapper):
    """GrokFast-EMA: gives `base` the gradient g + lamb e of the average e, which begins as g:

        e <- alpha e + (1 - alpha) g

    The first gradient is 1 + lamb times as long: nothing to Adam, a longer step to SGD. The rate is
    not divided by that, as pytorch_optimizer's GrokFastAdamW does unless told otherwise.

    Cost: no gradient evaluation of its own; 1 state tensor per parameter.
    """

    memory = "average_gradient"

    def __init__(self, base: Optimizer, alpha: float = 0.98, lamb: float = 2.0) -> None:
        checks.fraction(alpha=alpha)
        checks.non_negative(lamb=lamb)
        self.alpha, self.lamb = alpha, lamb
        super().__init__(base)

    def filtered(self, g: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sum of the class docstring."""
        average = g if memory is None else memory.lerp(g, 1 - self.alpha)
        return g + self.lamb * average, average
