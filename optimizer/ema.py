"""EMA of the weights, Polyak & Juditsky 1992 with a horizon, for evaluation; tail EMA: track 3."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from .parts import checks
from .parts.averaged import Averaged, wide

__all__ = ["EMA"]

SEARCH_SPACE = {"horizon": (10.0, 1000.0, "log"), "share": (0.3, 1.0, "linear")}
COST = {"gradient_evaluations": 1, "state_tensors": 1}
TESTED_AGAINST = "plain numpy"


class EMA(Averaged):
    """From step `start` on, where the average A begins as the weights W, after each step of `base`

        A <- A + (W - A) / horizon,   evaluated: (1 - share) W + share A

    horizon in steps. A tail EMA begins late, at least five horizons before the end, with a share of
    0.5 to 0.6; its horizon is about the time that the learning rate has left. With share 1 and
    start 0 it is the EMA that most codes have. An average lags behind where weights still travel.

    Cost: no gradient evaluation of its own; 1 state tensor per parameter, 2 while evaluating.
    """

    def __init__(self, base: Optimizer, horizon: float = 150.0, start: int = 0, share: float = 1.0
                 ) -> None:
        checks.at_least(0, start=start)
        checks.non_negative(horizon=horizon, share=share)
        if horizon < 1 or share > 1:
            raise ValueError(f"horizon must be >= 1 and share <= 1, got {horizon!r}, {share!r}")
        super().__init__(base)
        self.horizon, self.start, self.share = horizon, start, share
        self.keep_scalars(steps=0, evaluating=0)

    @property
    def has_average(self) -> bool:
        """Whether the average has begun."""
        return self.scalars["steps"] > max(self.start, 1)

    def collect(self, p: Tensor, state: dict) -> None:
        """The average of the class docstring."""
        if "average" not in state:
            state["average"] = wide(p)
        elif self.scalars["steps"] <= self.start:
            state["average"].copy_(p)
        else:
            state["average"].lerp_(p.to(state["average"].dtype), 1 / self.horizon)

    def evaluated(self, p: Tensor) -> Tensor | None:
        """The mixture of the class docstring."""
        average = self.state[p].get("average")
        return None if average is None else torch.lerp(p.to(average.dtype), average, self.share)
