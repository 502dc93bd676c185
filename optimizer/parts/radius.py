"""The radius of a sharpness-aware perturbation: constant, or following learning rate or loss gap.

"lr":  rho_t = rho lr_t / initial lr       (GSAM, Zhuang et al. 2022, arXiv 2203.08065, with
                                            rho_min = 0 where the schedule ends at 0)
"gap": the surrogate gap of GSAM, h_t = loss(W + e_t) - loss(W), is steered to a target: a budget
       of loss instead of distance (LE-SAM, Wang et al. 2026, arXiv 2605.10183). LE-SAM estimates
       h as rho ||g||; here it is the difference that the second pass measures, which is right for
       per-tensor norms and |W| in the perturbation too. After each perturbed step

           H <- 0.9 H + 0.1 h_t,   H_hat = H / (1 - 0.9^n)           (n perturbed steps so far)
           rho_{t+1} = rho_t clip(target / H_hat, 1/2, 2)^0.1,  kept within [rho / 10, 10 rho]

       H_hat <= 0, no rise at all, counts as the upper clip. h grows as rho^p, p = 1 on a slope and
       2 in a minimum, so that log rho is under integral control, stable for p < 380 at these
       constants. A target of 0 is measured: H_hat of the first 5 perturbed steps, at radius rho.
       Costs one host synchronization per perturbed step.
"""

import math
from typing import Literal

from torch import Tensor

from . import checks

RhoSchedule = Literal["constant", "lr", "gap"]

DECAY, RATE, CLIP, RANGE, MEASURED = 0.9, 0.1, 2.0, 10.0, 5
START = {"rho_factor": 1.0, "gap": 0.0, "gap_target": 0.0, "gaps": 0}  # the state of "gap"


def radius(rho: float, schedule: str, group: dict, state: dict[str, float]) -> float:
    """rho_t; the learning rates are `lr` and `initial_lr` of `group`."""
    if schedule == "gap":
        return rho * state["rho_factor"]
    if schedule == "lr":
        initial = group.get("initial_lr", group["lr"])
        return rho * (group["lr"] / initial if initial else 0.0)
    return rho


def observe_losses(
    state: dict[str, float], loss: Tensor, perturbed: Tensor, target: float
) -> None:
    """Update in place H and the factor of the next radius from the losses of a perturbed step.

    A loss that is not finite changes nothing.
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
    if target > 0:  # else no rise was found at rho itself
        ratio = target / mean if mean > 0 else CLIP
        factor = state["rho_factor"] * min(CLIP, max(1 / CLIP, ratio)) ** RATE
        state["rho_factor"] = min(RANGE, max(1 / RANGE, factor))


def check_radius(rho: float, rho_schedule: str, rho_gap: float) -> None:
    """Raise ValueError for an invalid value."""
    checks.non_negative(rho=rho, rho_gap=rho_gap)
    checks.choice(RhoSchedule, rho_schedule=rho_schedule)
