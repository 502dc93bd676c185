"""GrokFast, Lee et al. 2024, arXiv 2405.20233: amplify the slow component of the gradient."""

from torch import Tensor
from torch.optim import Optimizer

from .parts import checks
from .parts.filtered import FilterWrapper

__all__ = ["GrokFast"]

SEARCH_SPACE = {"alpha": [0.9, 0.98, 0.99], "lamb": (0.5, 5.0, "log")}
COST = {"gradient_evaluations": 1, "state_tensors": 1}
TESTED_AGAINST = "plain numpy"


class GrokFast(FilterWrapper):
    """GrokFast-EMA: gives `base` the gradient g + lamb e, with a moving average e that starts as g:

        e <- alpha e + (1 - alpha) g

    The first gradient is multiplied by 1 + lamb, which has no effect on Adam and lengthens SGD's
    step. Deviation: pytorch_optimizer's GrokFastAdamW divides lr by 1 + lamb by default.

    Cost: no additional gradient evaluation; 1 state tensor per parameter.
    Raises ValueError for an invalid argument, or a `base` that compares gradients with losses.
    """

    state_keys = ("average_gradient",)

    def __init__(self, base: Optimizer, alpha: float = 0.98, lamb: float = 2.0) -> None:
        checks.fraction(alpha=alpha)
        checks.non_negative(lamb=lamb)
        self.alpha, self.lamb = alpha, lamb
        super().__init__(base)

    def filtered(self, g: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return g + lamb e, and e as the new memory."""
        average = g if memory is None else memory.lerp(g, 1 - self.alpha)
        return g + self.lamb * average, average
