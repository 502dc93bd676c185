"""Schedules: the learning rate as a pure function of the step."""

import math
from typing import Literal

from torch.optim import Optimizer

DECAY_SHARE = 0.2  # "wsd": the last fifth of the period decays
STEP_FACTOR = 0.1  # "step": what each period multiplies the rate by


class Schedule:
    """Sets the `lr` of every parameter group from its initial value.

    name: "constant"; "cosine" and "linear" fall to min_lr at the end of the period and stay there;
    "step" multiplies by 0.1 after each period; "wsd" (warm-up, stable, decay) is constant and
    falls linearly to min_lr in the last fifth of the period. period_epochs counts from step 0 and
    is the whole run by default. The warm-up rises linearly over warmup_epochs and multiplies any.
    interval: the rate changes every "step", or as torch's schedulers are usually driven, every
    "epoch". Raises ValueError for negative lengths or a min_lr above a group's rate.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        epochs: int,
        steps_per_epoch: int,
        name: Literal["constant", "cosine", "linear", "step", "wsd"] = "constant",
        warmup_epochs: float = 0.0,
        period_epochs: float | None = None,
        min_lr: float = 0.0,
        interval: Literal["step", "epoch"] = "step",
    ) -> None:
        period_epochs = epochs if period_epochs is None else period_epochs
        if warmup_epochs < 0 or period_epochs <= 0 or min_lr < 0:
            raise ValueError("warmup_epochs and min_lr must be >= 0 and period_epochs > 0, got "
                             f"{warmup_epochs}, {min_lr}, {period_epochs}")
        self.optimizer, self.name, self.min_lr = optimizer, name, min_lr
        self.warmup = warmup_epochs * steps_per_epoch
        self.period = period_epochs * steps_per_epoch
        self.interval = steps_per_epoch if interval == "epoch" else 1
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            if name != "constant" and min_lr > group["initial_lr"]:
                raise ValueError(f"min_lr {min_lr} is above lr {group['initial_lr']}")

    def set_lr(self, step: int) -> None:
        """Set the rate of the step that comes after `step` finished ones."""
        step = step // self.interval * self.interval
        warmup = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        share = self.share(step / self.period)
        for group in self.optimizer.param_groups:
            floor = 0.0 if self.name in ("constant", "step") else self.min_lr
            lr = floor + (group["initial_lr"] - floor) * share
            group["lr"] = warmup * (max(lr, self.min_lr) if self.name == "step" else lr)

    def share(self, progress: float) -> float:
        """What is left of the rate, 1 to 0, at `progress` = steps done / steps of the period."""
        done = min(1.0, progress)
        if self.name == "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        if self.name == "linear":
            return 1 - done
        if self.name == "step":
            return STEP_FACTOR ** math.floor(progress)
        if self.name == "wsd":
            return min(1.0, (1 - done) / DECAY_SHARE)
        return 1.0
