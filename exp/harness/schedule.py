"""Learning-rate and weight-decay schedules as pure functions of the step."""

import math
from collections.abc import Callable
from typing import Literal

from torch.optim import Optimizer

from exp.harness.curves import (
    DECAY_SHARE,
    END_RATIO,
    LAST_RATIO,
    RISE_SHARE,
    START_RATIO,
    STEP_FACTOR,
    Shape,
    cooldown,
    cosine,
    one_cycle,
    require_fit,
)
from optimizer.parts.wrapper import wrappers_of

ScheduleName = Literal["constant", "cosine", "linear", "step", "wsd", "one_cycle", "exponential"]
BatchScaling = Literal["none", "linear", "sqrt"]
MOMENTA = 0.85, 0.95  # of "one_cycle": at the peak of the rate, at both ends


class Schedule:
    """Sets the `lr` of every parameter group, and its `weight_decay` and momentum where asked for.

    name:
        "constant"          lr
        "cosine", "linear"  fall to min_lr at the end of the period, constant after it
        "step"              times 0.1 after each period, but not below min_lr
        "wsd"               (warm-up, stable, decay) falls to min_lr in the last `decay_share` of
                            the period (0.2); shape: "linear", "sqrt" or "cosine", see
                            `curves.cooldown`; AdamW groups beside a matrix rule in the last
                            `adamw_decay_share` (default: decay_share)
        "exponential"       falls to lr * end_ratio (0.01)
        "one_cycle"         rises from lr / 25 to lr within the warm-up (default: 0.3 of the
                            period), then falls to lr * end_ratio (4e-6); arXiv 1708.07120, as
                            torch's OneCycleLR

    period_epochs: counted from step 0; default: the whole run. warmup_epochs or warmup_steps: the
    length of a linear warm-up, which multiplies every schedule but "one_cycle".
    interval: the rate changes every "step" or every "epoch". clock: with "evaluations", gradient
    evaluations, which the attribute `evaluations` returns, take the place of steps, so that rules
    with several per step end when these are spent.
    momentum: with "cycle", "one_cycle" moves `momentum`, or the first of `betas`, from 0.95 to 0.85
    and back, in groups where it is not 0.

    batch_scaling: the initial rate of every group is multiplied by r = batch_size /
    base_batch_size ("linear", Goyal et al. 2017, arXiv 1706.02677) or by sqrt(r) ("sqrt",
    Krizhevsky 2014, arXiv 1404.5997; for Adam, Malladi et al. 2022, arXiv 2205.10287).

    weight_decay: "constant"; "cosine" is wd (1 - cos(pi t / T)) over the period T, from 0 to twice
    the value given (the ARS optimizer summary 4.4, for Lion); "half_cosine" is half of that; "lr"
    is in proportion to the rate, warm-up included (AdamC, arXiv 2506.02285).

    Raises ValueError for negative lengths, two warm-ups or one beyond the period of "one_cycle",
    shares and ratios outside (0, 1], a min_lr above a group's rate, a key that the schedule `name`
    does not accept, a batch scaling without base_batch_size or the reverse, and a changing weight
    decay or momentum, or an adamw_decay_share, that no group is affected by.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        epochs: int,
        steps_per_epoch: int,
        name: ScheduleName = "constant",
        warmup_epochs: float = 0.0,
        period_epochs: float | None = None,
        min_lr: float = 0.0,
        interval: Literal["step", "epoch"] = "step",
        batch_scaling: BatchScaling = "none",
        base_batch_size: int | None = None,
        weight_decay: Literal["constant", "cosine", "half_cosine", "lr"] = "constant",
        warmup_steps: int = 0,
        decay_share: float | None = None,
        adamw_decay_share: float | None = None,
        shape: Shape | None = None,
        end_ratio: float | None = None,
        momentum: Literal["cycle"] | None = None,
        clock: Literal["steps", "evaluations"] = "steps",
        *,
        batch_size: int = 1,
    ) -> None:
        period_epochs = epochs if period_epochs is None else period_epochs
        if not (warmup_epochs >= 0 and period_epochs > 0 and min_lr >= 0):  # false for nan too
            raise ValueError("warmup_epochs and min_lr must be >= 0 and period_epochs > 0, got "
                             f"{warmup_epochs}, {min_lr}, {period_epochs}")
        require_fit(name, min_lr, decay_share=decay_share, adamw_decay_share=adamw_decay_share,
                     shape=shape, end_ratio=end_ratio, momentum=momentum)
        self.optimizer, self.name, self.min_lr = optimizer, name, min_lr
        self.warmup = _warmup(warmup_epochs * steps_per_epoch, warmup_steps)
        self.period = period_epochs * steps_per_epoch
        self.interval = steps_per_epoch if interval == "epoch" else 1
        self.weight_decay, self.momentum = weight_decay, momentum
        self.clock = clock
        self.evaluations: Callable[[], int] = lambda: 0
        self.decay = DECAY_SHARE if decay_share is None else decay_share
        self.adamw_decay = self.decay if adamw_decay_share is None else adamw_decay_share
        self.shape: Shape = shape or "linear"
        self.end = end_ratio or (LAST_RATIO if name == "one_cycle" else END_RATIO)
        self._require_sense(adamw_decay_share)
        factor = batch_factor(batch_scaling, batch_size, base_batch_size)
        for group in optimizer.param_groups:
            if "initial_lr" not in group:  # otherwise already scaled
                group["lr"] = group["initial_lr"] = group["lr"] * factor
            if name != "constant" and min_lr > group["initial_lr"]:
                raise ValueError(f"min_lr {min_lr} is above lr {group['initial_lr']}")
        if weight_decay != "constant":
            self._note_initial_decay()

    def _require_sense(self, adamw_decay_share: float | None) -> None:
        """Raise ValueError for settings that do not suit the optimizer or have no effect on it."""
        if self.name == "one_cycle" and self.warmup > self.period:
            raise ValueError(f"a warm-up of {self.warmup:g} steps is longer than the period of "
                             f'"one_cycle", {self.period:g} steps: shorten it')
        for wrapper in wrappers_of(self.optimizer):
            if getattr(wrapper, "constant_rate", False) and self.name != "constant":
                raise ValueError(f"{type(wrapper).__name__} replaces the schedule: set name = "
                                 f'"constant" (warm-up is allowed), got {self.name!r}')
        groups = self.optimizer.param_groups
        if adamw_decay_share is not None and not any(map(_is_adamw, groups)):
            raise ValueError(f"adamw_decay_share {adamw_decay_share} has no effect: "
                             "no parameter group is on the AdamW track")
        if self.momentum is not None and not any(map(_momentum, groups)):
            raise ValueError('momentum "cycle" has no effect: no parameter group has a momentum')

    def _note_initial_decay(self) -> None:
        groups = [group for group in self.optimizer.param_groups if group.get("weight_decay")]
        if not groups:
            raise ValueError(f"weight_decay {self.weight_decay!r} has no effect: "
                             "no parameter group has a weight_decay above 0")
        for group in groups:
            group.setdefault("initial_weight_decay", group["weight_decay"])

    def set_lr(self, step: int) -> None:
        """Set rate, weight decay and momentum for the step that follows `step` finished ones."""
        step = self.evaluations() if self.clock == "evaluations" else step
        step = step // self.interval * self.interval
        warmup = min(1.0, (step + self.interval) / self.warmup) if self.warmup else 1.0
        warmup = 1.0 if self.name == "one_cycle" else warmup
        floor = 0.0 if self.name in ("constant", "step") else self.min_lr
        for group in self.optimizer.param_groups:
            share = self.share(step, self.adamw_decay if _is_adamw(group) else self.decay)
            lr = floor + (group["initial_lr"] - floor) * share
            group["lr"] = warmup * (max(lr, self.min_lr) if self.name == "step" else lr)
            if "initial_weight_decay" in group:
                lr_share = group["lr"] / (group["initial_lr"] or 1.0)
                decay = self.decay_share(step / self.period, lr_share)
                group["weight_decay"] = group["initial_weight_decay"] * decay
            if self.momentum and _momentum(group):
                low, high = MOMENTA
                _set_momentum(group, high + (low - high) * self.height(step))

    def share(self, step: int, decay_share: float) -> float:
        """Factor of the rate, in [0, 1], after `step` finished steps."""
        done = min(1.0, step / self.period)
        if self.name == "cosine":
            return cosine(done)
        if self.name == "linear":
            return 1 - done
        if self.name == "step":
            return STEP_FACTOR ** math.floor(step / self.period)
        if self.name == "wsd":
            return cooldown(done, decay_share, self.shape)
        if self.name == "exponential":
            return self.end**done
        if self.name == "one_cycle":
            return self._cycle(step, START_RATIO, self.end)
        return 1.0

    def height(self, step: int) -> float:
        """Height of the one cycle: 0 at both ends, 1 at the peak."""
        return self._cycle(step, 0.0, 0.0)

    def _cycle(self, step: int, start: float, end: float) -> float:
        total = self.period / self.interval
        rise = self.warmup / self.interval or RISE_SHARE * total
        return one_cycle(step // self.interval, total, rise, start, end)

    def decay_share(self, progress: float, lr_share: float) -> float:
        """Factor of the weight decay. progress: finished share of the period; lr_share: lr over
        the initial lr."""
        if self.weight_decay == "lr":
            return lr_share
        risen = 1 - math.cos(math.pi * min(1.0, progress))
        return risen / 2 if self.weight_decay == "half_cosine" else risen


def _warmup(of_epochs: float, steps: int) -> float:
    if steps < 0 or (steps and of_epochs):
        raise ValueError("warmup_steps must be >= 0, and 0 if warmup_epochs is set, got "
                         f"{steps} and {of_epochs:g} steps")
    return steps or of_epochs


def _is_adamw(group: dict) -> bool:
    return group.get("track") == "adamw"


def _momentum(group: dict) -> float:
    return group.get("momentum") or (group.get("betas") or (0.0,))[0]


def _set_momentum(group: dict, value: float) -> None:
    if group.get("momentum"):
        group["momentum"] = value
    else:
        group["betas"] = (value, *group["betas"][1:])


def batch_factor(scaling: str, batch_size: int, base_batch_size: int | None) -> float:
    """Factor of the initial rate. Raises ValueError if base_batch_size is missing, below 1, or
    given without a scaling."""
    if scaling == "none":
        if base_batch_size is not None:
            raise ValueError(f"base_batch_size {base_batch_size} has no effect: "
                             'set batch_scaling to "linear" or "sqrt"')
        return 1.0
    if base_batch_size is None or base_batch_size < 1:
        raise ValueError(f'batch_scaling "{scaling}" needs base_batch_size, a whole number >= 1, '
                         f"got {base_batch_size}")
    ratio = batch_size / base_batch_size
    return ratio if scaling == "linear" else ratio**0.5
