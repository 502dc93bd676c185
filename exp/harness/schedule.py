"""Learning-rate and weight-decay schedules as pure functions of the step."""

import math
from typing import Literal

from torch.optim import Optimizer

DECAY_SHARE = 0.2  # "wsd": the last fifth of the period decays
STEP_FACTOR = 0.1  # "step": factor per period

BatchScaling = Literal["none", "linear", "sqrt"]


class Schedule:
    """Sets the `lr` of every parameter group from its initial value, and its `weight_decay`.

    name: "constant"; "cosine" and "linear" fall to min_lr at the end of the period and stay there;
    "step" multiplies by 0.1 after each period; "wsd" (warm-up, stable, decay) is constant and
    falls linearly to min_lr in the last fifth of the period. period_epochs counts from step 0 and
    is the whole run by default. The warm-up rises linearly over warmup_epochs and multiplies any.
    interval: the rate changes every "step", or as torch's schedulers are usually driven, every
    "epoch".

    batch_scaling: the initial rate of every group is multiplied by r = batch_size /
    base_batch_size ("linear", Goyal et al. 2017, arXiv 1706.02677) or by sqrt(r) ("sqrt",
    Krizhevsky 2014, arXiv 1404.5997; for Adam, Malladi et al. 2022, arXiv 2205.10287).

    weight_decay: "constant"; "cosine" wd (1 - cos(pi t / T)) over the period T, which rises from 0
    to twice the value given (the ARS optimizer summary 4.4, for Lion); "half_cosine" half of that,
    up to the value; "lr" in proportion to the rate, warm-up included (AdamC, arXiv 2506.02285).

    Raises ValueError for negative lengths, a min_lr above a group's rate, a batch scaling without
    base_batch_size or the other way round, and a changing weight decay where no group has one.
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
        batch_scaling: BatchScaling = "none",
        base_batch_size: int | None = None,
        weight_decay: Literal["constant", "cosine", "half_cosine", "lr"] = "constant",
        *,
        batch_size: int = 1,
    ) -> None:
        period_epochs = epochs if period_epochs is None else period_epochs
        if not (warmup_epochs >= 0 and period_epochs > 0 and min_lr >= 0):  # nor nan
            raise ValueError("warmup_epochs and min_lr must be >= 0 and period_epochs > 0, got "
                             f"{warmup_epochs}, {min_lr}, {period_epochs}")
        self.optimizer, self.name, self.min_lr = optimizer, name, min_lr
        self.warmup = warmup_epochs * steps_per_epoch
        self.period = period_epochs * steps_per_epoch
        self.interval = steps_per_epoch if interval == "epoch" else 1
        self.weight_decay = weight_decay
        factor = batch_factor(batch_scaling, batch_size, base_batch_size)
        for group in optimizer.param_groups:
            if "initial_lr" not in group:  # else it is scaled already
                group["lr"] = group["initial_lr"] = group["lr"] * factor
            if name != "constant" and min_lr > group["initial_lr"]:
                raise ValueError(f"min_lr {min_lr} is above lr {group['initial_lr']}")
        if weight_decay != "constant":
            self._note_initial_decay()

    def _note_initial_decay(self) -> None:
        groups = [group for group in self.optimizer.param_groups if group.get("weight_decay")]
        if not groups:
            raise ValueError(f"weight_decay {self.weight_decay!r} changes nothing: "
                             "no parameter group has a weight_decay above 0")
        for group in groups:
            group.setdefault("initial_weight_decay", group["weight_decay"])

    def set_lr(self, step: int) -> None:
        """Set the rate, and the decay, of the step that comes after `step` finished ones."""
        step = step // self.interval * self.interval
        warmup = min(1.0, (step + self.interval) / self.warmup) if self.warmup else 1.0
        share = self.share(step / self.period)
        for group in self.optimizer.param_groups:
            floor = 0.0 if self.name in ("constant", "step") else self.min_lr
            lr = floor + (group["initial_lr"] - floor) * share
            group["lr"] = warmup * (max(lr, self.min_lr) if self.name == "step" else lr)
            if "initial_weight_decay" in group:
                lr_share = group["lr"] / (group["initial_lr"] or 1.0)
                decay = self.decay_share(step / self.period, lr_share)
                group["weight_decay"] = group["initial_weight_decay"] * decay

    def share(self, progress: float) -> float:
        """The factor of the rate, 1 to 0, at `progress` = steps done / steps of the period."""
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

    def decay_share(self, progress: float, lr_share: float) -> float:
        """The factor of the weight decay at this progress and share of the rate."""
        if self.weight_decay == "lr":
            return lr_share
        risen = 1 - math.cos(math.pi * min(1.0, progress))
        return risen / 2 if self.weight_decay == "half_cosine" else risen


def batch_factor(scaling: str, batch_size: int, base_batch_size: int | None) -> float:
    """The factor of the initial rate. Raises ValueError where base_batch_size is missing, below 1,
    or given without a scaling."""
    if scaling == "none":
        if base_batch_size is not None:
            raise ValueError(f"base_batch_size {base_batch_size} changes nothing: "
                             'set batch_scaling to "linear" or "sqrt"')
        return 1.0
    if base_batch_size is None or base_batch_size < 1:
        raise ValueError(f'batch_scaling "{scaling}" needs base_batch_size, a whole number >= 1, '
                         f"got {base_batch_size}")
    ratio = batch_size / base_batch_size
    return ratio if scaling == "linear" else ratio**0.5
