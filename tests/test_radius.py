"""The radius of the perturbation: schedules by hand, and the same in every sharpness-aware rule."""

import copy
import math

import pytest
import torch
from torch import nn

from optimizer.ars import ARS
from optimizer.ars2_neo import ARS2Neo
from optimizer.asam import ASAM
from optimizer.gsam import GSAM
from optimizer.looksam import LookSAM
from optimizer.parts.radius import START, observe_losses, radius
from optimizer.sam import SAM

DOUBLE = torch.float64


def wrapped(cls, **own):
    return lambda params, **settings: cls(torch.optim.SGD(params, lr=0.0), **own, **settings)


RULES = {
    "sam": wrapped(SAM), "asam": wrapped(ASAM), "gsam": wrapped(GSAM),
    "looksam": wrapped(LookSAM, k=1),
    "ars2_neo": lambda params, **settings: ARS2Neo(
        params, lr=0.0, elementwise_scale="none", **settings),
    "ars": lambda params, **settings: ARS(params, lr=0.0, adaptive=False, **settings),
}


def radii(rule, steps, change=lambda optimizer, step: None, **settings):
    """How far each step moves a vector of two, in place on the slope f = 3 w1 + 4 w2."""
    w = nn.Parameter(torch.tensor([1.0, 1.0], dtype=DOUBLE))
    optimizer = RULES[rule]([w], **settings)
    slope = torch.tensor([3.0, 4.0], dtype=DOUBLE)
    seen = []

    def closure():
        optimizer.zero_grad()
        seen.append(w.detach().clone())
        loss = (slope * w).sum()
        loss.backward()
        return loss.detach()

    for step in range(steps):
        change(optimizer, step)
        optimizer.step(closure)
    assert len(seen) == 2 * steps
    return [float((moved - still).norm()) for still, moved in zip(seen[::2], seen[1::2],
                                                                  strict=True)]


# --- the rule by hand


def see(state, gap, target=0.0):
    losses = (torch.tensor(loss, dtype=DOUBLE) for loss in (1.0, 1.0 + gap))
    observe_losses(state, *losses, target)
    return state["rho_factor"]


def test_the_gap_is_averaged_and_steers_the_factor():
    state = dict(START)
    assert see(state, 0.1, 0.2) == pytest.approx(2**0.1)  # 0.2 / 0.1
    # H = 0.9 * 0.01 + 0.1 * 0.3 = 0.039, H_hat = 0.039 / 0.19, and 0.2 / H_hat = 38 / 39.
    assert see(state, 0.3, 0.2) == pytest.approx((2 * 38 / 39) ** 0.1)
    assert state["gap"] == pytest.approx(0.039)


def test_without_a_target_the_first_five_gaps_are_it():
    state = dict(START)
    assert [see(state, gap) for gap in (1.0, 2.0, 3.0, 4.0, 5.0)] == [1.0] * 5
    weights = [0.1 * 0.9**age for age in (4, 3, 2, 1, 0)]
    target = sum(w * gap for w, gap in zip(weights, (1, 2, 3, 4, 5), strict=True)) / sum(weights)
    assert state["gap_target"] == pytest.approx(target)
    mean = (0.9 * sum(weights) * target + 0.1 * 1.0) / (1 - 0.9**6)
    assert see(state, 1.0) == pytest.approx((target / mean) ** 0.1)


def test_the_factor_is_clipped_bounded_and_blind_to_what_is_not_finite():
    state = dict(START)
    assert see(state, -1.0, 0.2) == pytest.approx(2**0.1)  # no rise: a larger radius
    assert see(state, math.nan, 0.2) == see(state, math.inf, 0.2) == pytest.approx(2**0.1)
    assert state["gaps"] == 1
    assert [see(state, -1.0, 0.2) for _ in range(50)][-1] == 10.0
    assert [see(state, 1e9, 0.2) for _ in range(90)][-1] == 0.1
    flat = dict(START)
    assert [see(flat, 0.0) for _ in range(9)][-1] == 1.0  # rho = 0, say: there is no target


def test_a_gap_costs_one_synchronisation(monkeypatch):
    real, calls = torch.Tensor.__float__, []
    monkeypatch.setattr(torch.Tensor, "__float__", lambda x: calls.append(x) or real(x))
    see(dict(START), 0.1, 0.2)
    assert len(calls) == 1


def test_the_learning_rate_carries_the_radius():
    group = {"lr": 0.25, "initial_lr": 1.0}
    assert radius(0.4, "lr", group, {}) == 0.1
    assert radius(0.4, "lr", {"lr": 0.25}, {}) == 0.4
    assert radius(0.4, "lr", {"lr": 0.0, "initial_lr": 0.0}, {}) == 0.0
    assert radius(0.4, "constant", group, {}) == 0.4


# --- in every rule


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_follows_the_learning_rate_if_told_to(rule):
    def halve(optimizer, step):
        for group in optimizer.param_groups:
            group["initial_lr"], group["lr"] = 1e-12, 1e-12 / 2**step

    assert radii(rule, 3, halve, rho=0.4, rho_schedule="lr") == pytest.approx(
        [0.4, 0.2, 0.1], rel=1e-6)
    assert radii(rule, 3, halve, rho=0.4, rho_schedule="constant") == pytest.approx(
        [0.4] * 3, rel=1e-6)
    default = [0.4, 0.2, 0.1] if rule == "gsam" else [0.4] * 3
    assert radii(rule, 3, halve, rho=0.4) == pytest.approx(default, rel=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_steers_the_gap_to_its_target(rule):
    """On a slope of 5 the gap is 5 rho (less where rho is not up the slope: ARS2-Neo whitens)."""
    found = radii(rule, 200, rho=0.1, rho_schedule="gap", rho_gap=1.0)
    state, expected = dict(START), []
    for moved in found:
        expected.append(0.1 * state["rho_factor"])
        rise = moved * (7 / math.sqrt(2) if rule.startswith("ars") and expected[1:] else 5)
        see(state, rise, 1.0)
    assert found == pytest.approx(expected, rel=1e-5)
    slope = 7 / math.sqrt(2) if rule.startswith("ars") else 5
    assert found[-1] == pytest.approx(1 / slope, rel=1e-3)
    assert found[1] == pytest.approx(0.1 * 2**0.1, rel=1e-6)  # half the target at first: 2^0.1


@pytest.mark.parametrize("rule", RULES)
def test_what_the_radius_has_learned_is_in_the_state(rule):
    def run(reload_at):
        torch.manual_seed(0)
        w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=DOUBLE))
        make = lambda: RULES[rule]([w], rho=0.1, rho_schedule="gap")  # noqa: E731
        optimizer = make()
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        for step in range(12):
            if step == reload_at:
                state = copy.deepcopy(optimizer.state_dict())
                optimizer = make()
                optimizer.load_state_dict(state)

            def closure(optimizer=optimizer):
                optimizer.zero_grad()
                loss = (w**4).sum()
                loss.backward()
                return loss.detach()

            optimizer.step(closure)
        return w.detach().clone(), optimizer.diagnostics["rho"]

    whole, reloaded = run(None), run(8)
    assert torch.equal(whole[0], reloaded[0]) and whole[1] == reloaded[1] != 0.1


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("settings", "message"), [
    ({"rho": -1.0}, "rho"), ({"rho_gap": -1.0}, "rho_gap"), ({"rho_schedule": "x"}, "schedule")])
def test_bad_values_are_named(rule, settings, message):
    with pytest.raises(ValueError, match=message):
        RULES[rule]([nn.Parameter(torch.ones(2))], **settings)
