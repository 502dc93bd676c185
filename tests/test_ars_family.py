"""The ARS family and Muon: hand-computed steps, and traces against plain float64 versions."""

import gc

import numpy as np
import pytest
import references
import torch
from torch import nn

from optimizer.ada_rmsuon import AdaRMSuon
from optimizer.ars import ARS
from optimizer.ars2_neo import ARS2Neo
from optimizer.asam import ASAM
from optimizer.gsam import GSAM
from optimizer.looksam import LookSAM
from optimizer.muon import Muon
from optimizer.parts.adaptive_sync import decide_sync
from optimizer.parts.sharpness import perturbation, perturbed, shear_force, with_shear
from optimizer.rmsuon import RMSuon
from optimizer.sam import SAM

DOUBLE = torch.float64
SHAPES = {"wide": (4, 9), "tall": (9, 4), "conv": (6, 2, 3, 1), "stack": (3, 4, 5), "bias": (7,)}
MATRICES = ("wide", "tall", "conv", "stack")


def first_step(cls, gradient, **settings):
    """The change of a zero-initialized weight by one step with this gradient."""
    w = nn.Parameter(torch.zeros(torch.tensor(gradient).shape, dtype=DOUBLE))
    settings = {"orthogonalizer": "svd", "weight_decay": 0.0, **settings}
    optimizer = cls([w], **settings)

    def closure():
        w.grad = torch.tensor(gradient, dtype=DOUBLE)
        return torch.tensor(0.0)

    optimizer.step(closure)
    return w.detach().numpy()


# --- hand-computed first steps, exact msign


@pytest.mark.parametrize(("gradient", "settings", "expected"), [
    ([[3.0, 0], [0, 4]], {}, -0.02 * np.eye(2)),
    ([[3.0], [0], [4], [0]], {}, -0.04 * np.array([[0.6], [0], [0.8], [0]])),
    ([[3.0], [0], [4], [0]], {"scale": "moonlight"},
     -0.02 * 0.4 * np.array([[0.6], [0], [0.8], [0]])),
    ([[[[3.0]]], [[[0.0]]], [[[4.0]]], [[[0.0]]]], {"conv_scale": "keller"},
     -0.02 * np.array([0.6, 0, 0.8, 0]).reshape(4, 1, 1, 1)),
])
def test_muon_first_step(gradient, settings, expected):
    np.testing.assert_allclose(first_step(Muon, gradient, **settings), expected, atol=1e-12)


def test_moonlight_scale_gives_an_rms_of_a_fifth():
    g = np.random.default_rng(0).normal(size=(6, 9)).tolist()
    update = first_step(Muon, g, scale="moonlight")
    assert np.sqrt((update**2).mean()) == pytest.approx(0.2 * 0.02, rel=1e-9)


@pytest.mark.parametrize(("gradient", "expected"), [
    ([[3.0, 0], [0, 4]], -np.eye(2)),
    ([[1.0, 2], [3, 4]],
     -np.sqrt(2) * np.array([[-0.514496, 0.857493], [0.857493, 0.514496]])),
])
def test_rmsuon_first_step(gradient, expected):
    update = first_step(RMSuon, gradient, lr=1.0, eps=1e-300)
    np.testing.assert_allclose(update, expected, atol=1e-6)


@pytest.mark.parametrize(("gradient", "expected"), [
    ([[3.0, 0], [0, 4]], -np.sqrt(2) * np.eye(2)),
    ([[1.0, 2], [3, 4]], -np.ones((2, 2))),
    ([[3.0, 1], [-2, 5]], -np.sqrt(2) * np.array([[1.0, 1], [-1, 1]])),
])
def test_ada_rmsuon_first_step(gradient, expected):
    update = first_step(AdaRMSuon, gradient, lr=1.0, eps=1e-300)
    np.testing.assert_allclose(update, expected, atol=1e-6)


def test_energy_norms_and_scopes():
    gradient = np.random.default_rng(0).normal(size=(2, 3, 5)).tolist()  # u = sign(g), E^2 = 15
    lengths = {norm: np.linalg.norm(first_step(AdaRMSuon, gradient, lr=1.0, energy_norm=norm),
                                    axis=(1, 2)) for norm in ("literal", "frobenius", "rms")}
    np.testing.assert_allclose(lengths["literal"], np.sqrt(15 * 3), rtol=1e-6)
    np.testing.assert_allclose(lengths["frobenius"], np.sqrt(15), rtol=1e-6)
    np.testing.assert_allclose(lengths["rms"], np.sqrt(15), rtol=1e-6)
    whole = first_step(AdaRMSuon, gradient, lr=1.0, energy_scope="tensor")
    np.testing.assert_allclose(np.linalg.norm(whole, axis=(1, 2)), np.sqrt(30 * 3), rtol=1e-6)


def test_rmsuon_is_as_long_as_adam():
    rng = np.random.default_rng(0)
    w = nn.Parameter(torch.zeros(4, 6, dtype=DOUBLE))
    optimizer, adam = RMSuon([w], lr=0.1, weight_decay=0.0), references.Adam()
    for _ in range(5):
        before, g = w.detach().clone(), rng.normal(size=(4, 6))
        w.grad = torch.from_numpy(g)
        optimizer.step()
        expected = 0.1 * np.linalg.norm(adam.direction(g))
        assert float((w.detach() - before).norm()) == pytest.approx(expected, rel=1e-9)


# --- twenty steps against plain versions


def quadratic(seed=0):
    """Weights, and the gradient of a fixed nonconvex function of them, in numpy and as closure."""
    rng = np.random.default_rng(seed)
    start = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    targets = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    phases = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}

    def gradient(weights, step):
        return {n: (w - targets[n]) + 3 * np.cos(3 * w + phases[n] * step)
                for n, w in weights.items()}

    return start, gradient


def trace(make, reference_step, steps=20):
    """Largest relative difference between an optimizer and a plain version over 20 steps."""
    start, gradient = quadratic()
    params = {n: nn.Parameter(torch.from_numpy(w.copy())) for n, w in start.items()}
    optimizer = make(params)
    weights = {n: w.copy() for n, w in start.items()}
    worst = 0.0
    for step in range(steps):
        def closure(step=step):
            found = gradient({n: p.detach().numpy() for n, p in params.items()}, step)
            for n, p in params.items():
                p.grad = torch.from_numpy(found[n])
            return torch.tensor(0.0)

        optimizer.step(closure)
        reference_step(weights, lambda w, step=step: gradient(w, step))
        for n, p in params.items():
            difference = np.abs(p.detach().numpy() - weights[n]).max()
            worst = np.maximum(worst, difference / np.abs(weights[n]).max())  # keeps a NaN
    return worst, optimizer


def groups_of(params, **adamw):
    return [{"params": [params[n] for n in MATRICES], "track": "matrix"},
            {"params": [params["bias"]], "track": "adamw", **adamw}]


@pytest.mark.parametrize("rule", ["muon", "rmsuon", "ada_rmsuon"])
def test_first_order_rules_follow_their_plain_version(rule):
    lr, wd, betas = 0.01, 0.1, (0.9, 0.95)
    cls = {"muon": Muon, "rmsuon": RMSuon, "ada_rmsuon": AdaRMSuon}[rule]
    own = {} if rule == "muon" else {"betas": betas}
    states = {n: references.Muon() if rule == "muon" else references.Adam(betas)
              for n in MATRICES}
    states["bias"] = references.Adam((0.9, 0.999))
    update = {"muon": lambda s, g: s.update(g), "rmsuon": references.rmsuon_update,
              "ada_rmsuon": lambda s, g: references.ars_update(s.direction(g))}[rule]

    def reference(weights, gradient):
        g = gradient(weights)
        for n in weights:
            move = states[n].direction(g[n]) if n == "bias" else update(states[n], g[n])
            weights[n] = weights[n] * (1 - lr * wd) - lr * move

    worst, _ = trace(lambda p: cls(groups_of(p), lr=lr, weight_decay=wd, **own), reference)
    assert worst < 1e-10


@pytest.mark.parametrize(("k", "aga"), [
    (0, None), (1, None), (3, None), (1, (0.9, 0.5, 2.0)), (4, (0.99, 2.0, 1.0))])
def test_every_mode_of_ars2_neo_follows_its_plain_version(k, aga):
    lr, wd, betas, rho, alpha = 0.01, 0.1, (0.9, 0.95), 0.3, 0.2
    adaptive = {} if aga is None else {"adaptive_sync": True, "adaptive_beta": aga[0],
                                       "adaptive_lambda": aga[1], "adaptive_gamma": aga[2]}
    plain = None

    def reference(weights, gradient):
        nonlocal plain
        plain = plain or references.ARS2Neo(weights, MATRICES, lr, wd, betas, (0.8, 0.9), rho, k,
                                            alpha, aga)
        plain.step(gradient)

    worst, optimizer = trace(
        lambda p: ARS2Neo(groups_of(p, betas=(0.8, 0.9)), lr=lr, weight_decay=wd, betas=betas,
                          rho=rho, k=k, alpha=alpha, **adaptive), reference)
    assert worst < 1e-10
    if aga:
        assert 1 < len(plain.syncs) < 20  # the trace exercises both kinds of step
        assert optimizer.scalars["sync_steps"] == len(plain.syncs)
        assert optimizer.diagnostics["effective_k"] == 20 / len(plain.syncs)


@pytest.mark.parametrize("k", [1, 3])
def test_old_ars_follows_its_plain_version(k):
    lr, wd, betas, rho, alpha = 0.01, 0.1, (0.9, 0.95), 0.3, 0.2
    adam = {n: references.Adam(betas if n in MATRICES else (0.9, 0.999)) for n in SHAPES}
    shear, t = {}, 0

    def reference(weights, gradient):
        nonlocal t
        t += 1
        raw = gradient(weights)
        if k == 1 or t % k == 1:
            moved = {}
            for n, w in weights.items():
                v_hat = adam[n].v / (1 - adam[n].betas[1] ** max(1, t - 1))
                q = raw[n] / (np.sqrt(v_hat) + 1e-8) * np.abs(w)
                moved[n] = w + rho * q / np.linalg.norm(q)
            g2 = gradient(moved)
            shear.update({n: g2[n] - (g2[n] * raw[n]).sum() / (raw[n] ** 2).sum() * raw[n]
                          for n in raw})
            raw = corrected = g2
        else:
            corrected = {n: raw[n] + alpha * np.linalg.norm(raw[n]) / np.linalg.norm(f) * f
                         for n, f in shear.items()}
        for n in weights:
            u = adam[n].direction(corrected[n], squared=raw[n])
            move = references.ars_update(u) if n in MATRICES else u
            weights[n] = weights[n] * (1 - lr * wd) - lr * move

    worst, _ = trace(lambda p: ARS(groups_of(p), lr=lr, weight_decay=wd, betas=betas, rho=rho,
                                   k=k, alpha=alpha), reference)
    assert worst < 1e-10


# --- limits in which one rule is another


def final(make):
    _, optimizer = trace(make, lambda weights, gradient: None, steps=6)
    return torch.cat([p.detach().flatten() for g in optimizer.param_groups for p in g["params"]])


def test_base_mode_is_ada_rmsuon_bit_for_bit():
    base = final(lambda p: ARS2Neo(groups_of(p), k=0))
    assert torch.equal(base, final(lambda p: AdaRMSuon(groups_of(p))))


@pytest.mark.parametrize("perturb_norm", ["tensor", "global"])
def test_sync_without_radius_is_base(perturb_norm):
    sync = final(lambda p: ARS2Neo(groups_of(p), k=1, rho=0.0, perturb_norm=perturb_norm))
    assert torch.equal(sync, final(lambda p: ARS2Neo(groups_of(p), k=0)))


def test_old_ars_in_sync_is_ars2_neo_in_sync():
    old = final(lambda p: ARS(groups_of(p), rho=0.1, k=1))
    torch.testing.assert_close(old, final(lambda p: ARS2Neo(groups_of(p), rho=0.1, k=1)))


def test_gradient_scale_does_not_matter():
    g = np.random.default_rng(0).normal(size=(4, 6))
    for cls in (Muon, RMSuon, AdaRMSuon):
        settings = {"eps": 1e-300} if cls is not Muon else {}
        one = first_step(cls, g.tolist(), lr=1.0, **settings)
        thousand = first_step(cls, (1000 * g).tolist(), lr=1.0, **settings)
        np.testing.assert_allclose(one, thousand, rtol=1e-9)


# --- parts left out: the cells of the ablation


@pytest.mark.parametrize(("gradient", "settings", "expected"), [
    # u = 1, msign(u) = 1/2, and Moonlight's 0.2 sqrt(2) for the energy.
    ([[1.0, 2], [3, 4]], {"energy_norm": "none"}, -0.1 * np.sqrt(2) * np.ones((2, 2))),
    # msign(g) = I, and E = ||sign g|| = sqrt(2) as it was.
    ([[3.0, 0], [0, 4]], {"whiten": False}, -np.sqrt(2) * np.eye(2)),
    ([[3.0, 0], [0, 4]], {"whiten": False, "energy_norm": "none"}, -0.2 * np.sqrt(2) * np.eye(2)),
    ([[3.0, 0], [0, 4]], {"whiten": False, "energy_norm": "none", "orthogonalizer": "none"},
     -np.diag([3.0, 4])),
    ([[3.0, 0], [0, 4]], {"whiten": False, "energy_norm": "frobenius", "orthogonalizer": "none"},
     -np.sqrt(2) * np.diag([0.6, 0.8])),
    ([[3.0, -5], [0, 4]], {"energy_norm": "frobenius", "orthogonalizer": "none"},
     -np.array([[1.0, -1], [0, 1]])),
])
def test_first_step_without_a_part(gradient, settings, expected):
    for cls, own in ((AdaRMSuon, {}), (ARS2Neo, {"k": 0})):
        update = first_step(cls, gradient, lr=1.0, eps=1e-300, **own, **settings)
        np.testing.assert_allclose(update, expected, atol=1e-12)


def test_momentum_without_whitening_is_corrected_for_its_start():
    w = nn.Parameter(torch.zeros(1, 2, dtype=DOUBLE))
    optimizer = AdaRMSuon([w], lr=1.0, betas=(0.9, 0.99), weight_decay=0.0, whiten=False,
                          energy_norm="none", orthogonalizer="none")
    for gradient in ([1.0, 0.0], [0.0, 2.0]):
        w.grad = torch.tensor([gradient], dtype=DOUBLE)
        optimizer.step()
    # The second m_hat is (0.09 g1 + 0.1 g2) / 0.19.
    np.testing.assert_allclose(w.detach(), [[-1 - 9 / 19, -20 / 19]], rtol=1e-12)


ADAMW = {"orthogonalizer": "none"}


@pytest.mark.parametrize(("cell", "known"), [
    ({"whiten": False, "energy_norm": "none"},
     lambda p: Muon(groups_of(p, lr=0.01), lr=0.01, momentum=0.9, nesterov=False,
                    scale="moonlight", weight_decay=0.1)),
    ({"whiten": False, "energy_norm": "frobenius"},
     lambda p: RMSuon(groups_of(p), lr=0.01, weight_decay=0.1)),
    ({**ADAMW, "energy_norm": "none"},
     lambda p: torch.optim.AdamW([p[n] for n in (*MATRICES, "bias")], lr=0.01, weight_decay=0.1)),
    ({**ADAMW, "energy_norm": "frobenius"},
     lambda p: torch.optim.AdamW([p[n] for n in (*MATRICES, "bias")], lr=0.01, weight_decay=0.1)),
], ids=["Muon", "RMSuon", "AdamW", "AdamW again"])
def test_without_its_parts_it_is_a_known_rule(cell, known):
    ours = final(lambda p: ARS2Neo(groups_of(p), lr=0.01, weight_decay=0.1, k=0, **cell))
    torch.testing.assert_close(ours, final(known), rtol=1e-11, atol=1e-13)


def test_an_energy_that_presumes_an_orthogonal_direction_is_refused_without_one():
    for norm in ("literal", "rms"):
        with pytest.raises(ValueError, match="energy_norm"):
            AdaRMSuon([nn.Parameter(torch.ones(2, 2))], energy_norm=norm, orthogonalizer="none")


# --- sharpness: hand-checked pieces


@pytest.mark.parametrize(("scale", "expected"), [
    ("abs", [0.6, 0.8]), ("none", [0.70710678, 0.70710678]), ("asam", [1.8, 3.2])])
@pytest.mark.parametrize("norm", ["tensor", "global"])
def test_perturbation_of_one_tensor(scale, expected, norm):
    w, g = torch.tensor([3.0, -4.0], dtype=DOUBLE), torch.ones(2, dtype=DOUBLE)
    (offset,) = perturbation([w], [g], 1.0, norm, scale)
    np.testing.assert_allclose(offset, expected, atol=1e-8)


def test_the_global_norm_runs_over_all_tensors():
    w = [torch.ones(1, dtype=DOUBLE), torch.ones(1, dtype=DOUBLE)]
    g = [torch.tensor([3.0], dtype=DOUBLE), torch.tensor([4.0], dtype=DOUBLE)]
    offsets = perturbation(w, g, 5.0, "global", "none")
    np.testing.assert_allclose(torch.cat(offsets), [3.0, 4.0])
    np.testing.assert_allclose(torch.cat(perturbation(w, g, 5.0, "tensor", "none")), [5.0, 5.0])


def test_shear_and_injection():
    g1, g2 = torch.tensor([1.0, 0], dtype=DOUBLE), torch.tensor([2.0, 3], dtype=DOUBLE)
    f = shear_force(g2, g1)
    np.testing.assert_allclose(f, [0, 3], atol=1e-11)
    (injected,) = with_shear([torch.tensor([3.0, 4], dtype=DOUBLE)], [f], 0.1)
    np.testing.assert_allclose(injected, [3, 4.5], atol=1e-11)


def test_weights_come_back_bit_for_bit_even_after_an_error():
    w = torch.randn(50)
    before = w.clone()
    with pytest.raises(RuntimeError, match="inside"), perturbed([w], [torch.randn(50) * 1e3]):
        assert not torch.equal(w, before)
        raise RuntimeError("inside")
    assert torch.equal(w, before)


@pytest.fixture(scope="module")
def only_new_objects():
    """gc.get_objects names what is made from here on, not the million that there are."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize(("make", "held"), [
    # the weights and their copy; the base gradient where it is used again; AdamW's two moments;
    # the shear force of the sync step before
    (lambda p: SAM(torch.optim.SGD(p)), 2), (lambda p: ASAM(torch.optim.SGD(p)), 2),
    (lambda p: GSAM(torch.optim.SGD(p)), 3), (lambda p: LookSAM(torch.optim.SGD(p), k=1), 4),
    (lambda p: ARS2Neo(p, k=1), 4), (lambda p: ARS2Neo(p, k=1, perturb_norm="global"), 4),
    (lambda p: ARS2Neo(p, k=2), 6)],
    ids=["sam", "asam", "gsam", "looksam", "sync", "sync, global", "lazy"])
def test_the_second_pass_holds_no_more_than_it_needs(make, held, only_new_objects):
    gc.collect()
    p = nn.Parameter(torch.randn(23, 29))
    optimizer, seen = make([p]), []

    def closure(synchronize=True):
        alive = {t.data_ptr() for t in gc.get_objects()
                 if issubclass(type(t), torch.Tensor) and t.shape == p.shape}
        seen.append(len(alive))
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = (p**4).sum()
            loss.backward()
        return loss.detach()

    for _ in range(3):
        optimizer.step(closure)
    assert len(seen) in (5, 6) and seen[-1] == held  # the third step is a sync step of Lazy too


def test_aga_trace():
    """OPTIMIZERS 5.8: alpha .1, beta .99, lambda 2, gamma 2, no forced sync."""
    optimizer = ARS2Neo([nn.Parameter(torch.ones(2, 2))], adaptive_sync=True, k=0)
    expected = [(0.0, True, 0.0, 0.0, 0.1), (0.5, False, 0.0, 0.0, 0.225),
                (-0.2, True, 4e-4, -0.04, 0.1), (-0.01, False, 4e-4, -0.04, 0.1)]
    for phi, syncs, variance, threshold, alpha in expected:
        optimizer.scalars["step"] += 1
        assert decide_sync(optimizer.scalars, phi, 0, 0.1, 0.99, 2.0, 2.0) is syncs
        if syncs:
            optimizer.scalars["last_sync_step"] = optimizer.scalars["step"]
        assert optimizer.scalars["phi_var"] == pytest.approx(variance)
        assert optimizer.scalars["threshold"] == pytest.approx(threshold)
        assert optimizer.scalars["alpha_t"] == pytest.approx(alpha)


@pytest.mark.parametrize(("settings", "expected"), [
    ({"k": 0}, [1] * 7), ({"k": 1}, [2] * 7), ({"k": 3}, [2, 1, 1, 2, 1, 1, 2])])
def test_gradient_evaluations_of_each_mode(settings, expected):
    w = nn.Parameter(torch.randn(3, 3))
    optimizer, calls = ARS2Neo([w], **settings), []

    def closure():
        calls[-1] += 1
        w.grad = torch.randn(3, 3)
        return torch.tensor(0.0)

    for _ in expected:
        calls.append(0)
        optimizer.step(closure)
    assert calls == expected


def test_in_place_zeroing_closures_do_not_destroy_the_base_gradient():
    def final_with(set_to_none):
        torch.manual_seed(0)
        model = nn.Linear(4, 3).double()
        optimizer = ARS2Neo(model.parameters(), k=2)
        x = torch.randn(8, 4, dtype=DOUBLE)

        def closure():
            optimizer.zero_grad(set_to_none=set_to_none)
            loss = model(x).pow(2).mean()
            loss.backward()
            return loss.detach()

        for _ in range(4):
            optimizer.step(closure)
        return model.weight.detach()

    assert torch.equal(final_with(True), final_with(False))


def test_sam_gives_its_base_the_gradient_uphill():
    w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=DOUBLE))
    optimizer = SAM(torch.optim.SGD([w], lr=1.0), rho=0.05)

    def closure():
        optimizer.zero_grad()
        loss = (w**2).sum() / 2
        loss.backward()
        return loss.detach()

    assert float(optimizer.step(closure)) == 12.5
    np.testing.assert_allclose(w.detach(), [3 - 3.03, 4 - 4.04], atol=1e-12)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("cls", [ARS, ARS2Neo])
def test_the_first_perturbation_is_not_whitened_whatever_eps(cls, eps):
    w, visited = nn.Parameter(torch.ones(2, 2, dtype=DOUBLE)), []
    g = torch.tensor([[3.0, 0], [0, -4]], dtype=DOUBLE)

    def closure():
        visited.append(w.detach().clone())
        w.grad = g.clone() + len(visited) - 1
        return torch.tensor(0.0)

    cls([w], rho=0.5, eps=eps).step(closure)
    np.testing.assert_allclose(visited[1] - visited[0], 0.1 * g, atol=1e-12)
    assert w.isfinite().all()


@pytest.mark.parametrize("cls", [ARS2Neo, SAM])
def test_sharpness_aware_steps_need_a_closure(cls):
    w = nn.Parameter(torch.ones(2, 2))
    optimizer = cls(torch.optim.SGD([w], lr=1.0)) if cls is SAM else cls([w])
    with pytest.raises(ValueError, match="closure"):
        optimizer.step(None)
