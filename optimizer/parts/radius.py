"""The radius of a sharpness-aware perturbation: constant, or adapted to learning rate or loss gap.

"lr":  rho_t = rho lr_t / initial lr       (GSAM, Zhuang et al. 2022, arXiv 2203.08065, with
                                            rho_min = 0 where the schedule ends at 0)
"gap": the radius is controlled so that GSAM's surrogate gap, h_t = loss(W + e_t) - loss(W), meets a
       target: the budget is a loss, not a distance (LE-SAM, Wang et al. 2026, arXiv 2605.10183).
       LE-SAM estimates h as rho ||g||; here h is measured from the losses of both passes, which is
       also correct for per-tensor norms and |W| in the perturbation. After each perturbed step

           H <- 0.9 H + 0.1 h_t,   H_hat = H / (1 - 0.9^n)           (n perturbed steps so far)
           rho_{t+1} = rho_t clip(target / H_hat, 1/2, 2)^0.1,  kept within [rho / 10, 10 rho]

       H_hat <= 0 (the loss did not rise) counts as the upper clip. h grows as rho^p, with p = 1 on
       a slope and 2 in a minimum, so this is integral control of log rho, stable for p < 380 with
       these constants. A target of 0 is replaced by H_hat of the first 5 perturbed steps, taken at
       radius rho. Cost: one host synchronization per perturbed step.
"""

import math
from typing import Literal

from torch import Tensor

from . import checks

RhoSchedule = Literal["constant", "lr", "gap"]

DECAY, RATE, CLIP, RANGE, MEASURED = 0.9, 0.1, 2.0, 10.0, 5
START = {"rho_factor": 1.0, "gap": 0.0, "gap_target": 0.0, "gaps": 0}  # the state of "gap"


def radius(rho: float, schedule: str, group: dict, state: dict[str, float]) -> float:
    """Return rho_t; the learning rates are `lr` and `initial_lr` of `group`."""
    if schedule == "gap":
        return rho * state["rho_factor"]
    if schedule == "lr":
        initial = group.get("initial_lr", group["lr"])
        return rho * (group["lr"] / initial if initial else 0.0)
    return rho


def observe_losses(
    state: dict[str, float], loss: Tensor, perturbed: Tensor, target: float
) -> None:
    """Update H and the factor of the next radius in place from the losses of a perturbed step.

    A loss that is not finite is ignored.
    """
    gap = float(perturbed - loss)
    if not math.isfinite(gap):
        return
    state["gaps"] += 1
    state["gap"] = DECAY * state["gap"] + (1 - DECAY) * gap
    mean = state["gap"] / (1 - DECAY ** state["gaps"])
    if not target and state["gaps"] <= MEASURED:
        state["gap_target"] = mean
        return
    target = target or state["gap_target"]
    if target > 0:  # the measured target is not positive if the loss did not rise at radius rho
        ratio = target / mean if mean > 0 else CLIP
        factor = state["rho_factor"] * min(CLIP, max(1 / CLIP, ratio)) ** RATE
        state["rho_factor"] = min(RANGE, max(1 / RANGE, factor))


def check_radius(rho: float, rho_schedule: str, rho_gap: float) -> None:
    """Raise ValueError for an invalid value."""
    checks.non_negative(rho=rho, rho_gap=rho_gap)
    checks.choice(RhoSchedule, rho_schedule=rho_schedule)
