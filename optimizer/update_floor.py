"""Update floor, arXiv 2606.27715 (Aurora): a minimum norm of updates, relative to the weights.

Per row: modded-nanogpt, track 3. bound "fixed" is the relative update of LARS and LAMB.
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
    """Scales the direction u of `base` so that its norm is at least tau ||W||:

        W <- W - lr f u,   f = max(1, tau ||W|| / ||u||)

    Norms are per matrix (m, n), or with part="row" per row. The floor replaces weight decay: the
    relative step of a growing weight does not fall below lr tau, and lr decays by its schedule.
    With tau far above ||u|| / ||W|| only the product lr tau matters. bound "fixed": f = tau ||W|| /
    ||u||, so every step has norm lr tau ||W||, and a matrix of zeros never moves. Wrap it in
    RadialBrake for the pinned norm of the modded-nanogpt record.

    Cost: no additional gradient evaluation, no state.
    Raises ValueError for an invalid argument, and if `base` has a weight decay or complex
    parameters.
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
        """Return the updated weights of the class docstring."""
        dim = (-2, -1) if self.part == "matrix" else (-1,)
        factor = over(self.tau * norm(w, dim), norm(u, dim))
        return w - group["lr"] * (factor.clamp_min(1) if self.bound == "floor" else factor) * u
