"""EMA of the weights, after Polyak & Juditsky 1992: evaluate a moving average of the weights.

Tail EMA: modded-nanogpt, track 3.
"""

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
    """Evaluates a mixture of the weights W and their moving average A, which begins at `start`:

        A <- A + (W - A) / horizon,   evaluated: (1 - share) W + share A

    horizon is in steps; A = W at step `start`. share 1 and start 0 is the usual EMA. A tail EMA
    starts late, at least five horizons before the end, with a share of 0.5 to 0.6 and a horizon of
    about the remaining decay time of the learning rate. While the weights still move fast, the
    average lags behind them.

    Cost: no additional gradient evaluation; 1 state tensor per parameter, 2 while evaluating.
    Raises ValueError for an invalid argument, a `base` with its own weights for evaluation, and a
    step in eval mode.
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
        """Whether the average has started."""
        return self.scalars["steps"] > max(self.start, 1)

    def collect(self, p: Tensor, state: dict) -> None:
        """Update the average of the class docstring."""
        if "average" not in state:
            state["average"] = wide(p)
        elif self.scalars["steps"] <= self.start:
            state["average"].copy_(p)
        else:
            state["average"].lerp_(p.to(state["average"].dtype), 1 / self.horizon)

    def evaluated(self, p: Tensor) -> Tensor | None:
        """Return the mixture of the class docstring; None before the first step."""
        average = self.state[p].get("average")
        return None if average is None else torch.lerp(p.to(average.dtype), average, self.share)
