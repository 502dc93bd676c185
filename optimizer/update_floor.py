"""Update floor, arXiv 2606.27715 (Aurora): the least length of an update, in units of the weights.

Of rows: track 3 of modded-nanogpt. bound "fixed" is the relative update of LARS and LAMB.
"""

from typing import Literal

from torch import Tensor
from torch.optim import Optimizer

from .parts import checks
from .parts.delta import Delta, Scope, norm, over

__all__ = ["UpdateFloor"]

SEARCH_SPACE = {"tau": (0.1, 1.0, "log")}
COST = {"gradient_evaluations": 1, "state_tensors": 0}
TESTED_AGAINST = "plain numpy"

Part = Literal["matrix", "row"]
Bound = Literal["floor", "fixed"]


class UpdateFloor(Delta):
    """W <- W - lr f u with f = max(1, tau ||W|| / ||u||), or of each row by the norms of rows.

    It takes the place of weight decay: a weight that grows slows the rule only down to steps of
    lr tau times its norm, while lr decays too. With tau far above ||u|| / ||W|| it is nothing but
    a factor of lr. bound "fixed": f = tau ||W|| / ||u||, so that every step is lr tau ||W|| long,
    and a matrix of zeros never moves. The pin of the record goes around: RadialBrake.

    Cost: no gradient evaluation of its own, no state.
    """

    stage = "update length"

    def __init__(self, base: Optimizer, tau: float = 0.35, part: Part = "matrix",
                 bound: Bound = "floor", scope: Scope = "matrix") -> None:
        checks.non_negative(tau=tau)
        checks.choice(Part, part=part)
        checks.choice(Bound, bound=bound)
        super().__init__(base, scope)
        self.tau, self.part, self.bound = tau, part, bound

    def move(self, p: Tensor, w: Tensor, u: Tensor, group: dict) -> Tensor:
        """The update of the class docstring."""
        dim = (-2, -1) if self.part == "matrix" else (-1,)
        factor = over(self.tau * norm(w, dim), norm(u, dim))
        return w - group["lr"] * (factor.clamp_min(1) if self.bound == "floor" else factor) * u
