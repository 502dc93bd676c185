"""SAM, Foret et al. 2020, arXiv 2010.01412: use the gradient at the worst point nearby."""


from torch import Tensor
from torch.optim import Optimizer

from .parts.base import Closure, grads_of
from .parts.radius import RhoSchedule
from .parts.sharpness import perturbation
from .parts.sharpness_aware import SharpnessWrapper

__all__ = ["SAM"]

SEARCH_SPACE = {"rho": (0.01, 0.5, "log")}
COST = {"gradient_evaluations": 2, "state_tensors": 0}
TESTED_AGAINST = "by hand, plain numpy, pytorch_optimizer"


class SAM(SharpnessWrapper):
    """Gives `base` the gradient at W + rho g / ||g|| instead of g (Algorithm 1, eq. 2).

    The norm is over all parameters. Whenever `base` calls its closure, it gets the gradient at the
    perturbed weights and the loss at the unperturbed ones, and the weights are restored. SAM can
    therefore wrap any optimizer.
    `rho_schedule` "lr" and "gap" (target loss rise `rho_gap`): parts/radius.py.

    local: with several processes, each perturbs by the gradient of its own part of the batch
    (m-sharpness, section 4.1) without communicating it: half the traffic, a different result. The
    closure must then accept `synchronize=False`.

    Cost: 2 gradient evaluations per gradient of `base`; no state.
    Raises ValueError for an invalid argument, and in a step without a closure or `first_step`.
    """

    def __init__(self, base: Optimizer, rho: float = 0.05, rho_schedule: RhoSchedule = "constant",
                 rho_gap: float = 0.0, local: bool = False) -> None:
        super().__init__(base, rho, rho_schedule, rho_gap)
        self.local = local

    def first_loss(self, closure: Closure) -> Tensor:
        """Leave the gradient at the unperturbed weights in `p.grad`, not reduced if `local`."""
        return closure(synchronize=False) if self.local else closure()

    def ascend(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the offsets of the class docstring; the second gradient is used unchanged."""
        grads = grads_of(params)
        return perturbation(params, grads, self.radius, "global", "none"), []
