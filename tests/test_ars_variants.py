"""Upstream's variants of ARS2-Neo: its own classes' traces, null forms, what is unstable."""

import warnings
from functools import partial

import pytest
import torch
from torch import nn
from traces import differs, steps

from optimizer.ars2_neo import ARS2Neo
from optimizer.parts import curvature, polar

A_GSAM = {"a_gsam": True, "k": 10, "adaptive_lambda": 0.1}
AGAM = {"adaptive_sync": True, "k": 1, "adaptive_lambda": 0.1, "sharpness_paths": "agam"}
RANGES = {"beta1_range": (0.9, 0.9995), "beta2_range": (0.9, 0.9995)}
ELEMENT = {"beta_rule": "element", **RANGES}
AR_GSAM = {**ELEMENT, "rho_rule": "curvature"}


def ars2(**settings):
    return partial(ARS2Neo, **{"lr": 0.01, "betas": (0.9, 0.98), "weight_decay": 0.1,
                               "energy_scope": "tensor", **settings})


@pytest.fixture
def released(monkeypatch):
    """Newton-Schulz as released, which adds 1e-7 to the norm: 1e-9 in a step."""
    monkeypatch.setattr(polar, "newton_schulz", partial(polar.newton_schulz, floor=1e-7))


@pytest.mark.parametrize(("settings", "step", "expected"), [
    ({"k": 0}, 3, ".9656431869 -1.9703091142 .5083700285 .2514533444 2.9705431648 -.9616829465"),
    (A_GSAM, 3, ".9652178505 -1.9679258627 .5040293197 .2498809040 2.9693714233 -.9667173925"),
    ({"k": 0, "ns_passes": 2}, 1,
     ".9920188180 -1.9909942495 .4925938365 .2566975490 2.9900770194 -.9919774330"),
    ({"k": 0, "ns_passes": 2}, 3,
     ".9651042914 -1.9709559995 .5085063479 .2503925025 2.9712335814 -.9622485623"),
    ({**A_GSAM, "ns_passes": 2}, 1,
     ".9920185247 -1.9909941330 .4925942463 .2566972557 2.9900771360 -.9919770232"),
    ({**A_GSAM, "ns_passes": 2}, 3,
     ".9636886426 -1.9655870907 .5062682197 .2522932638 2.9656451283 -.9626417885"),
    ({**A_GSAM, **ELEMENT}, 1,
     ".9920356111 -1.9910355760 .4925357201 .2567143399 2.9900356950 -.9920355516"),
    ({**A_GSAM, **ELEMENT}, 3,
     ".9346311406 -1.9509357361 .5661035517 .2925788603 2.9221852481 -.9353776952"),
    (ELEMENT, 3, ".9938735180 -1.8875167588 .5326475936 .2972148112 2.9511485707 -.9431394240"),
    (AR_GSAM, 3, ".9938823749 -1.8875045718 .5326382561 .2972199557 2.9511520551 -.9431441565"),
    (AGAM, 1, ".9851071930 -2.0098781429 .4856071938 .2636428073 2.9851218579 -.9851071934"),
    (AGAM, 3, ".9594172138 -1.9867020487 .4918723299 .2614482846 2.9640630933 -.9644017531"),
    ({**A_GSAM, **AR_GSAM, "ns_passes": 2}, 3,
     ".9159258457 -1.9740535361 .5709889833 .3073514460 2.9062172099 -.9400003635"),
], ids=["Base", "A-GSAM", "ARS2D", "ARS2D, 3", "ARS2D A-GSAM", "ARS2D A-GSAM, 3", "ARS2C A-GSAM",
        "ARS2C A-GSAM, 3", "ARS2C", "AR-GSAM", "AGAM", "AGAM, 3", "ARS2DC AR-GSAM"])
def test_the_traces_of_the_released_classes(settings, step, expected, released):
    weights, optimizer = steps(ars2(**settings))
    assert differs(weights[step - 1], expected) < 1e-10
    (state,) = optimizer.state.values()
    if settings == {**A_GSAM, "ns_passes": 2}:
        assert optimizer.scalars["phi"] == pytest.approx(0.7434149663, abs=1e-10)
        assert optimizer.scalars["sync_steps"] == 1
    if settings == {**A_GSAM, **ELEMENT} and step == 3:
        assert optimizer.scalars["phi"] == pytest.approx(0.7516050215, abs=1e-9)
        assert differs(state["alignment"], ".8260564329 .7905863025 .8677638804 .9082623665 "
                                           ".8692623862 .9541203775") < 1e-10
    if settings.get("ns_passes") == 2 and "rho_rule" in settings:
        assert float(state["rho"]) == pytest.approx(0.0991997168, abs=1e-10)
    if settings == AR_GSAM:
        found = [float(state[key]) for key in ("rho", "nu", "cosine")]
        assert found == pytest.approx([0.0984643067, 0.0185750245, 1.2624295160], abs=1e-10)


def test_the_scalar_rule_warns_before_its_weights_are_nan(released):
    with pytest.warns(UserWarning, match="decay rates"):
        weights, _ = steps(ars2(beta_rule="scalar", **RANGES))
    assert torch.isfinite(weights[1]).all() and torch.isnan(weights[2]).all()


def test_the_scalar_rule_starts_at_the_lower_ends():
    """Before its first c the decay rates are the minima, whatever betas are."""
    minima = steps(ars2(k=0, betas=(0.9, 0.9)))[0]
    scalar = steps(ars2(k=0, beta_rule="scalar", betas=(0.1, 0.2), **RANGES))[0]
    torch.testing.assert_close(scalar, minima, rtol=1e-12, atol=0)


def test_a_range_without_width_is_a_fixed_pair_of_betas():
    """The null arm of ARS2C."""
    flat = {"beta1_range": (0.95, 0.95), "beta2_range": (0.95, 0.95)}
    fixed, element = (steps(ars2(betas=(0.95, 0.95), **A_GSAM, **rule))[0]
                      for rule in ({}, {"beta_rule": "element", **flat}))
    torch.testing.assert_close(element, fixed, rtol=1e-12, atol=0)


def test_two_passes_of_an_exact_msign_are_one():
    one, two = (steps(ars2(orthogonalizer="svd", ns_passes=passes, **A_GSAM))[0]
                for passes in (1, 2))
    torch.testing.assert_close(two, one, rtol=1e-12, atol=0)


def test_a_pass_over_the_transpose_is_a_pass_bit_for_bit():
    u = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(polar.orthogonalize([u])[0][0], polar.orthogonalize([u.mT])[0][0].mT)


def test_independent_random_matrices_align_at_a_half():
    """Hence ARS2C is close to betas in the middle of its ranges."""
    generator = torch.Generator().manual_seed(0)
    c, o = (polar.orthogonalize([torch.randn(128, 128, generator=generator)])[0][0]
            for _ in range(2))
    level = curvature.alignment(c, o)
    assert float(level.mean()) == pytest.approx(0.5, abs=0.01) and float(level.std()) < 0.05


def test_the_radius_of_ar_gsam_sinks_from_its_start_and_cannot_rise_to_its_bound():
    """At rest ||C|| = nu, and the target is rho_min (1 + log 2) (2 - s), 0.034 at most."""
    optimizer = ARS2Neo([nn.Parameter(torch.ones(2, 2))], rho_rule="curvature")
    entry = {"curvature_norm": torch.tensor(3.0)}
    for _ in range(2000):
        entry["cosine"] = torch.tensor(0.0)
        optimizer._adapt(entry, 0.1, 0.99, 1e-8)
    assert float(entry["rho"]) == pytest.approx(0.01 * (1 + 0.6931471806) * 2, rel=1e-4)


@pytest.mark.parametrize(("settings", "says"), [
    ({"beta1_range": (0.9, 0.5)}, "beta1_range"), ({"beta2_range": (0.9, 1.0)}, "beta2_range"),
    ({"rho_range": (0.1,)}, "rho_range"), ({"rho_rates": (-1.0, 0.1)}, "rho_rates"),
    ({"rho_rule": "curvature", "rho_schedule": "lr"}, "rho_schedule"), ({"ns_passes": 0}, "ns_pas"),
    ({"beta_rule": "matrix"}, "beta_rule")])
def test_bad_options_are_named(settings, says):
    with pytest.raises(ValueError, match=says):
        ARS2Neo([nn.Parameter(torch.ones(2, 2))], **settings)


def test_the_vectors_beside_take_a_constant_radius_and_adamw():
    matrix, vector = (nn.Parameter(torch.ones(shape)) for shape in ((3, 2), (2,)))
    optimizer = ARS2Neo([matrix, vector], **AR_GSAM)

    def closure():
        optimizer.zero_grad()
        loss = ((matrix @ vector - 3) ** 4).sum()
        loss.backward()
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            optimizer.step(closure)
    assert set(optimizer.state[vector]) == {"step", "exp_avg", "exp_avg_sq"}
    assert 0.01 < float(optimizer.state[matrix]["rho"]) < 0.1
    says = optimizer.diagnostics
    assert says["matrix_rho"] == float(optimizer.state[matrix]["rho"])
    assert 0 < says["alignment"] <= 1


# --- AGAM


def test_agam_chooses_its_path_by_two_windows(released):
    """Steps of the rule on problem Q: with windows that are ready, by hand of what lies in them."""
    def path_of(window_1, window_2, **settings):
        weights, optimizer = steps(ars2(**{**AGAM, **settings}), count=1)
        before = weights[0]
        optimizer.scalars.update(window_1=window_1, window_2=window_2, step=0, sam_paths=0,
                                 middle_paths=0, gam_paths=0)
        (w,) = optimizer.param_groups[0]["params"]
        evaluations = []

        def closure():
            evaluations.append(w.detach().clone())
            w.grad = w.detach() * torch.arange(1.0, 7).reshape(2, 3)
            return w.detach().sum()

        optimizer.step(closure)
        assert torch.equal(evaluations[0], before)  # restored to the bit
        taken = [optimizer.scalars[f"{name}_paths"] for name in ("sam", "middle", "gam")]
        return taken, len(evaluations), evaluations

    fixed = {"adaptive_sync": False}  # phi counts as 1
    assert path_of((0.5,) * 50, (0.5,) * 50, **fixed)[:2] == ([1, 0, 0], 2)
    assert path_of((2.0,) * 50, (1e-3,) * 50, **fixed)[:2] == ([0, 1, 0], 3)
    assert path_of((2.0,) * 50, (2.0,) * 50, **fixed)[:2] == ([0, 0, 1], 3)
    taken, _, points = path_of((0.5,) * 49, (0.5,) * 50, **fixed)  # not ready
    assert taken == [0, 0, 1]
    assert float((points[2] - points[0]).norm()) == pytest.approx(0.01)  # rho_small, at W itself


def test_agam_skips_a_parameter_without_a_second_gradient():
    a, b = (torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64)) for _ in range(2))
    optimizer = ARS2Neo([a, b], weight_decay=0.0, **AGAM)
    calls = []

    def closure():
        calls.append(1)
        a.grad, b.grad = a.detach() + 1, b.detach() + 1 if len(calls) != 2 else None
        return a.detach().sum()

    optimizer.step(closure)
    assert len(calls) == 3 and (a != 1).all() and (b == 1).all()


def test_agam_needs_its_closure_and_one_path_is_a_gsam():
    w = nn.Parameter(torch.eye(2))
    w.grad = torch.ones(2, 2)
    with pytest.raises(ValueError, match="third gradient"):
        ARS2Neo([w], sharpness_paths="agam").first_step()
    one, _ = steps(ars2(**{**AGAM, "sharpness_paths": "one"}))
    a_gsam, _ = steps(ars2(a_gsam=True, k=1, adaptive_lambda=0.1))
    torch.testing.assert_close(one, a_gsam, rtol=0, atol=0)
