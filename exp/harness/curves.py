"""Learning-rate curves as pure functions, factors of at most 1; the keys of each schedule."""

import math
from typing import Any, Literal

Shape = Literal["linear", "sqrt", "cosine"]

STEP_FACTOR = 0.1  # of "step", per period
DECAY_SHARE = 0.2  # of "wsd": the last fifth of the period decays
END_RATIO = 0.01  # of "exponential"
RISE_SHARE, START_RATIO, LAST_RATIO = 0.3, 1 / 25, 1 / 25 / 1e4  # of "one_cycle", as in torch

# Key -> the schedules that accept it.
NAMES_WITH = {"decay_share": ("wsd",), "adamw_decay_share": ("wsd",), "shape": ("wsd",),
              "end_ratio": ("one_cycle", "exponential"), "momentum": ("one_cycle",)}


def cosine(done: float) -> float:
    """Half a cosine: 1 at done = 0, 0 at done = 1."""
    return (1 + math.cos(math.pi * done)) / 2


def cooldown(done: float, share: float, shape: Shape) -> float:
    """1 until the last `share` of the period, then a fall to 0; done: finished share, in [0, 1].

    shape: "linear"; "sqrt" is 1 - sqrt(p), p the finished share of the decay (Hägele et al. 2024,
    arXiv 2405.18392, section 3); "cosine" half a cosine.
    """
    left = min(1.0, (1 - done) / share)
    if shape == "sqrt":
        return 1 - math.sqrt(1 - left)
    return left if shape == "linear" else cosine(1 - left)


def one_cycle(index: float, steps: float, rise: float, start: float, end: float) -> float:
    """Half a cosine from `start` to 1 over `rise` steps and one from 1 to `end` over the rest of
    `steps` (Smith & Topin 2017, arXiv 1708.07120). `index` counts from 0 and the peak is at rise -
    1, as in torch's OneCycleLR."""
    top, last = rise - 1, steps - 1
    if index <= top:
        return 1 + (start - 1) * cosine(index / top if top else 1.0)
    done = (index - top) / (last - top) if last > top else 1.0
    return end + (1 - end) * cosine(min(1.0, done))


def require_fit(name: str, min_lr: float, **given: Any) -> None:
    """Raise ValueError for a key that the schedule `name` does not accept, and for a share or ratio
    outside (0, 1]. Keys of value None are not given."""
    for key, value in given.items():
        if value is None:
            continue
        if name not in NAMES_WITH[key]:
            wanted = " or ".join(f'"{kind}"' for kind in NAMES_WITH[key])
            raise ValueError(f'{key} {value!r} has no effect on "{name}": it needs name = {wanted}')
        if isinstance(value, int | float) and not 0 < value <= 1:
            raise ValueError(f"{key} must be in (0, 1], got {value}")
    if min_lr and name in NAMES_WITH["end_ratio"]:
        raise ValueError(f'min_lr has no effect on "{name}", got {min_lr}: set end_ratio instead')
