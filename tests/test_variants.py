"""Variants of Adam and Muon, and twenty steps of what no other file follows that far.

References: pytorch_optimizer where it does what the authors say, else plain float64 numpy.
"""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_optimizer
import references
import torch
from test_ars_family import MATRICES, SHAPES, groups_of, trace
from test_collection import nesterov
from torch import nn

from exp.grokking.train import TASK
from exp.harness.build import build
from exp.harness.config import complete
from exp.harness.errors import ConfigError
from optimizer.ada_eps import AdaEps
from optimizer.adam_mini import AdamMini
from optimizer.adamw_8bit import AdamW8bit
from optimizer.asam import ASAM
from optimizer.gsam import GSAM
from optimizer.lars import LARS
from optimizer.lion import Lion
from optimizer.lookahead import Lookahead
from optimizer.looksam import LookSAM
from optimizer.low_rank_muon import OVERSAMPLING, LowRankMuon, low_rank_polar
from optimizer.muon import Muon
from optimizer.normuon import NorMuon
from optimizer.sam import SAM
from optimizer.signum import Signum
from optimizer.spectral_clip_muon import SpectralClipMuon, spectral_clip
from optimizer.tiger import Tiger

DOUBLE = torch.float64


def worst_of(make, reference_step):
    """Largest relative difference over 20 steps: wide, tall, conv, stack and vector."""
    return trace(make, reference_step)[0]


def following(make, drive):
    """A reference step that runs an optimizer of another library on the same gradients.

    make(params) builds it for named parameters; drive(optimizer, closure) is one step of it.
    """
    params, found = {}, []

    def step(weights, gradient):
        if not found:
            params.update({n: nn.Parameter(torch.from_numpy(w.copy())) for n, w in weights.items()})
            found.append(make(params))

        def closure():
            gradients = gradient({n: p.detach().numpy() for n, p in params.items()})
            for n, p in params.items():
                p.grad = torch.from_numpy(gradients[n])
            return torch.tensor(0.0)

        drive(found[0], closure)
        weights.update({n: p.detach().numpy().copy() for n, p in params.items()})

    return step


def per_tensor(update):
    """A reference step that applies update(name, w, g) -> new w to each tensor on its own."""
    def step(weights, gradient):
        g = gradient(weights)
        weights.update({n: update(n, w, g[n]) for n, w in weights.items()})

    return step


def decayed_steps(lr, wd, direction, vector):
    """W <- (1 - lr wd) W - lr u; u = direction(name, g) for matrices, vector(g) for the vector."""
    return per_tensor(lambda n, w, g: w * (1 - lr * wd)
                      - lr * (vector(g) if n == "bias" else direction(n, g)))


# --- Adam-mini


def test_adam_mini_by_hand():
    """One row g = [1, 2, 3, 4]: v = 7.5. Rows of a matrix and matrices of a stack on their own."""
    g = [[1.0, 2, 3, 4], [2.0, 0, 0, 0]]
    expected = -np.array([np.array(g[0]) / np.sqrt(7.5), [2, 0, 0, 0]])
    np.testing.assert_allclose(plain_first_step(AdamMini, g, eps=0.0), expected)
    both = -np.array(g) / np.sqrt(34 / 8)
    np.testing.assert_allclose(plain_first_step(AdamMini, g, eps=0.0, block="matrix"), both)
    stack = plain_first_step(AdamMini, [g, [[6.0] * 4] * 2], eps=0.0, block="matrix")
    np.testing.assert_allclose(stack, [both, -np.ones((2, 4))])
    whole = plain_first_step(AdamMini, [[[[1.0]], [[7.0]]]], eps=0.0)  # a 1 x 1 convolution
    np.testing.assert_allclose(whole.flatten(), [-1 / 5, -7 / 5])


def plain_first_step(cls, gradient, **settings):
    """The change of zeros by one step of length lr = 1 without decay."""
    w = nn.Parameter(torch.zeros(np.array(gradient).shape, dtype=DOUBLE))
    w.grad = torch.tensor(gradient, dtype=DOUBLE)
    cls([w], lr=1.0, weight_decay=0.0, **settings).step()
    return w.detach().numpy()


@pytest.mark.parametrize("block", ["row", "matrix"])
def test_adam_mini_follows_its_plain_version(block):
    lr, wd, betas, eps = 0.01, 0.1, (0.9, 0.95), 1e-8
    axes = {"bias": (), "conv": (0, 1, 2, 3)}
    state = {n: [0.0, 0.0, 0] for n in SHAPES}

    def direction(n, g):
        m, v, t = state[n]
        mean = (g**2).mean(axis=axes.get(n, -1 if block == "row" else (-2, -1)), keepdims=True)
        m, v, t = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * mean, t + 1
        state[n] = [m, v, t]
        return m / (1 - betas[0]**t) / (np.sqrt(v / (1 - betas[1]**t)) + eps)

    assert worst_of(
        lambda p: AdamMini(list(p.values()), lr=lr, betas=betas, weight_decay=wd, block=block),
        decayed_steps(lr, wd, direction, lambda g: direction("bias", g))) < 1e-10


def test_adam_mini_is_the_one_of_pytorch_optimizer():
    """Its moments are float32, so ours run in float32; a head there is a matrix of a stack here."""
    rng = np.random.default_rng(0)
    names = {"wide": "mlp.weight", "tall": "proj.weight", "conv": "conv.weight",
             "stack": "q_proj.weight", "bias": "embed"}  # blocks are read off names: embed is Adam
    shapes = {**SHAPES, "stack": (3, 4, 12)}  # 3 heads of 4 on 12 dimensions: square, as it assumes
    start = {n: torch.from_numpy(rng.normal(size=shape)).float() for n, shape in shapes.items()}
    ours = {n: nn.Parameter(w.clone()) for n, w in start.items()}
    theirs = {n: nn.Parameter(w.clone().flatten(0, 1) if n == "stack" else w.clone())
              for n, w in start.items()}
    model = SimpleNamespace(named_parameters=lambda: [(names[n], p) for n, p in theirs.items()])
    optimizers = [
        AdamMini(list(ours.values()), lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, block="matrix"),
        pytorch_optimizer.AdamMini(model, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1,
                                   num_embeds=12, num_heads=3)]
    for _ in range(20):
        for n, shape in shapes.items():
            ours[n].grad = torch.from_numpy(rng.normal(size=shape)).float()
            theirs[n].grad = ours[n].grad.reshape(theirs[n].shape).clone()
        for optimizer in optimizers:
            optimizer.step()
    for n, p in ours.items():
        torch.testing.assert_close(p.flatten(), theirs[n].flatten(), rtol=1e-6, atol=1e-7)


# --- AdaEps


def test_ada_eps_by_hand():
    """c = 0.5, g = [1, 2, 3]: eps = 1."""
    found = plain_first_step(AdaEps, [1.0, 2, 3], eps_ratio=0.5)
    np.testing.assert_allclose(found, [-1 / 2, -2 / 3, -3 / 4])
    even = plain_first_step(AdaEps, [1.0, 2, 3, 4], eps_ratio=0.5)  # the lower median, 2
    np.testing.assert_allclose(even, [-1 / 2, -2 / 3, -3 / 4, -4 / 5])


def test_ada_eps_does_not_see_the_scale_of_the_gradient():
    g = np.random.default_rng(0).normal(size=(4, 5))
    for scale in (1e-6, 1e6):
        np.testing.assert_allclose(plain_first_step(AdaEps, (scale * g).tolist()),
                                   plain_first_step(AdaEps, g.tolist()), rtol=1e-12)


def test_ada_eps_falls_to_its_floor_where_most_gradients_are_zero():
    found = plain_first_step(AdaEps, [0.0, 0, 1], eps=0.25)
    np.testing.assert_allclose(found, [0, 0, -0.8])


def test_ada_eps_follows_its_plain_version():
    lr, wd, betas, ratio = 0.01, 0.1, (0.9, 0.95), 0.3
    state = {n: [0.0, 0.0, 0] for n in SHAPES}

    def direction(n, g):
        m, v, t = state[n]
        m, v, t = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2, t + 1
        state[n] = [m, v, t]
        root = np.sqrt(v / (1 - betas[1]**t))
        median = np.sort(root, axis=None)[(root.size - 1) // 2]
        return m / (1 - betas[0]**t) / (root + max(ratio * median, 1e-12))

    assert worst_of(
        lambda p: AdaEps(list(p.values()), lr=lr, betas=betas, weight_decay=wd, eps_ratio=ratio),
        decayed_steps(lr, wd, direction, lambda g: direction("bias", g))) < 1e-10


# --- spectral clipping


def spectrum(matrix):
    return np.linalg.svd(matrix, compute_uv=False)


def test_spectral_clip_by_hand():
    """diag(3.15, 1.71, 0.33) clipped to [0.8, 1.7], all in units of 3.15."""
    m = torch.diag(torch.tensor([3.15, 1.71, 0.33], dtype=DOUBLE)).unsqueeze(0)
    found = 3.15 * spectral_clip(m, 0.8 / 3.15, 1.7 / 3.15)[0]
    np.testing.assert_allclose(found, np.diag([1.7, 1.7, 0.8]), atol=1e-12)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_spectral_clip_is_a_sum_of_three_msigns(shape):
    """((a+b) P + (M - a P) msign(P^T M - a I) - (M - b P) msign(P^T M - b I)) / 2, m >= n."""
    m = np.random.default_rng(0).normal(size=shape)
    tall = (m if shape[0] > shape[1] else m.T) / spectrum(m)[0]
    a, b, eye = 0.3, 0.7, np.eye(4)
    p = references.msign(tall)
    expected = ((a + b) * p + (tall - a * p) @ references.msign(p.T @ tall - a * eye)
                - (tall - b * p) @ references.msign(p.T @ tall - b * eye)) / 2
    found = spectral_clip(torch.from_numpy(m).unsqueeze(0), a, b)[0].numpy()
    np.testing.assert_allclose(found if shape[0] > shape[1] else found.T, expected, atol=1e-12)


def test_spectral_clip_leaves_zero_singular_values():
    m = np.outer([1.0, 2, 2], [3.0, 4])
    found = spectral_clip(torch.from_numpy(np.stack([m, 0 * m])), 0.5, 1.0).numpy()
    np.testing.assert_allclose(found, np.stack([m / 15, 0 * m]), atol=1e-12)


@pytest.mark.parametrize(("settings", "factor"), [
    ({"smin": 1.0, "smax": 1.0}, "polar"), ({"smin": 0.0, "smax": 1.0}, "normalized")])
def test_limits_of_spectral_clip_muon(settings, factor):
    g = np.random.default_rng(0).normal(size=(4, 6))
    expected = {"polar": references.msign(g), "normalized": g / spectrum(g)[0]}[factor]
    update = plain_first_step(SpectralClipMuon, g.tolist(), **settings)
    np.testing.assert_allclose(update, -expected, atol=1e-12)


def clipped(matrix, smin, smax):
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return u @ np.diag(np.clip(s / s[0], smin, smax)) @ vt


def truncated(matrix, k):
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :k] @ vt[:k]


def c_keller(shape):
    m, n = shape[-2:] if len(shape) == 3 else (shape[0], np.prod(shape[1:]))
    return max(1, m / n) ** 0.5


@pytest.mark.parametrize(("cls", "factor", "settings"), [
    (SpectralClipMuon, lambda u: clipped(u, 0.3, 0.8), {"smin": 0.3, "smax": 0.8}),
    (LowRankMuon, lambda u: truncated(u, 2), {"k": 2}),
    (LowRankMuon, references.msign, {"k": 128}),
    (Muon, references.keller5, {"scale": "moonlight"}),
], ids=["spectral_clip", "low_rank", "full_rank", "muon_moonlight"])
def test_muon_variants_follow_their_plain_version(cls, factor, settings):
    lr, wd = 0.01, 0.1
    states, adam = {n: {} for n in MATRICES}, references.Adam((0.9, 0.999))

    def direction(n, g):
        shape = g.shape[-2:] if g.ndim == 3 else (len(g), g[0].size)
        c = 0.2 * max(shape) ** 0.5 if cls is Muon else c_keller(g.shape)
        return c * references.per_matrix(factor, nesterov(states[n], g, 0.95))

    assert worst_of(lambda p: cls(groups_of(p), lr=lr, weight_decay=wd, **settings),
                    decayed_steps(lr, wd, direction, adam.direction)) < 1e-10


# --- low rank


def decaying(ratio, shape, seed=0):
    """A matrix with singular values 1, ratio, ratio^2 ..."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.normal(size=(size, min(shape))))[0] for size in shape)
    return u @ np.diag(ratio ** np.arange(min(shape))) @ v.T


def test_low_rank_finds_the_leading_directions():
    m = decaying(0.5, (40, 60))
    polar, basis = low_rank_polar(torch.from_numpy(m).unsqueeze(0), None, 5)
    assert basis.shape == (1, 40, 5)
    np.testing.assert_allclose(polar[0], truncated(m, 5), atol=1e-7)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
def test_the_update_of_low_rank_muon_has_k_equal_singular_values(shape):
    g = np.random.default_rng(0).normal(size=shape)
    update = plain_first_step(LowRankMuon, g.tolist(), k=3)
    expected = np.zeros(40)
    expected[:3] = c_keller(shape)
    np.testing.assert_allclose(spectrum(update), expected, atol=1e-12)


def test_low_rank_muon_gets_better_from_step_to_step():
    """A slowly falling spectrum, of which one pass misses much: the directions are carried on."""
    m = decaying(0.95, (60, 80))
    matrices, basis, errors = torch.from_numpy(m).unsqueeze(0), None, []
    for _ in range(40):
        polar, basis = low_rank_polar(matrices, basis, 4)
        errors.append(np.linalg.norm(polar[0].numpy() - truncated(m, 4)))
    assert 4 + OVERSAMPLING < 60
    assert errors[0] > 0.1
    assert errors[-1] < 1e-3 * errors[0]


def test_low_rank_muon_finds_directions_that_appear_later():
    """First only the first two rows have a gradient, then only the others."""
    rng = np.random.default_rng(0)
    w = nn.Parameter(torch.zeros(40, 60, dtype=DOUBLE))
    optimizer = LowRankMuon([w], lr=1.0, k=2, momentum=0.0)
    for rows in (slice(0, 2), slice(2, 40)):
        before = w.detach().clone()
        w.grad = torch.zeros_like(w)
        w.grad[rows] = torch.from_numpy(rng.normal(size=w[rows].shape))
        optimizer.step()
        moved = (w.detach() - before).numpy()
        np.testing.assert_allclose(spectrum(moved)[:3], [1, 1, 0], atol=1e-12)
        assert np.abs(moved[rows]).sum() == pytest.approx(np.abs(moved).sum())


# --- 8-bit AdamW


def test_8bit_adamw_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not there
    with pytest.raises(ImportError, match=r"pip install 'bitsandbytes>=0.50'"):
        AdamW8bit([nn.Parameter(torch.ones(2))])
    settings = complete({
        "experiment": {"task": "grokking", "epochs": 1, "device": "cpu"},
        "data": {"batch_size": 8, "p": 5}, "model": {"name": "grokking_transformer"},
        "optimizer": {"name": "adamw_8bit"}}, TASK)
    with pytest.raises(ConfigError, match=r"\[optimizer\] adamw_8bit needs bitsandbytes"):
        build(settings, TASK)


@pytest.mark.parametrize(("shape", "share"), [((1024, 8), 0.05), ((64, 8), 1e-5)])
def test_8bit_adamw_stays_near_adamw(shape, share):
    """Large tensors within 5 % of the way they can go, small ones as near as float32 comes."""
    pytest.importorskip("bitsandbytes")
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    weights = [nn.Parameter(start.clone()) for _ in range(2)]
    optimizers = [AdamW8bit([weights[0]], lr=0.01), torch.optim.AdamW([weights[1]], lr=0.01)]
    for _ in range(20):
        g = torch.randn(shape, generator=generator)
        for w, optimizer in zip(weights, optimizers, strict=True):
            w.grad = g.clone()
            optimizer.step()
    difference = float((weights[0] - weights[1]).detach().abs().max())
    assert difference <= share * 0.01 * 20
    states = [v for v in optimizers[0].state[weights[0]].values() if torch.is_tensor(v)]
    sizes = {v.element_size() for v in states if v.shape == start.shape}
    assert sizes == ({1} if start.numel() >= 4096 else {4})


# --- twenty steps of the wrappers


def sgd(params):
    return torch.optim.SGD(list(params.values()), lr=0.01, momentum=0.9)


def test_sam_is_the_one_of_pytorch_optimizer():
    """Which takes the norm in float32."""
    def drive(optimizer, closure):
        closure()  # it wants the first gradient beforehand
        optimizer.step(closure)

    theirs = following(lambda p: pytorch_optimizer.SAM(
        list(p.values()), torch.optim.SGD, rho=0.3, lr=0.01, momentum=0.9), drive)
    assert worst_of(lambda p: SAM(sgd(p), rho=0.3), theirs) < 1e-7


def test_gsam_is_the_one_of_pytorch_optimizer():
    """Which takes the norms in float32."""
    theirs = following(
        lambda p: pytorch_optimizer.GSAM(list(p.values()), sgd(p), nn.Module(),
                                         SimpleNamespace(step=lambda: 0.3), alpha=0.2),
        lambda optimizer, closure: optimizer.step(lambda: (None, closure())))
    assert worst_of(lambda p: GSAM(sgd(p), rho=0.3, alpha=0.2), theirs) < 1e-6


def test_lookahead_is_the_one_of_pytorch_optimizer():
    theirs = following(lambda p: pytorch_optimizer.Lookahead(sgd(p), k=3, alpha=0.4),
                       lambda optimizer, closure: optimizer.step(closure))
    assert worst_of(lambda p: Lookahead(sgd(p), k=3, alpha=0.4), theirs) < 1e-10


def momentum_steps(gradient_of):
    """SGD with momentum 0.9 and rate 0.01 on gradient_of(weights, gradient, step)."""
    buffers, count = {}, []

    def step(weights, gradient):
        g = gradient_of(weights, gradient, len(count))
        count.append(1)
        for n in weights:
            buffers[n] = 0.9 * buffers.get(n, 0.0) + g[n]
            weights[n] = weights[n] - 0.01 * buffers[n]

    return step


def norm_of(tensors):
    return np.sqrt(sum((t**2).sum() for t in tensors.values()))


def test_sam_follows_its_plain_version():
    def gradient_of(weights, gradient, _):
        g = gradient(weights)
        return gradient({n: w + 0.3 * g[n] / norm_of(g) for n, w in weights.items()})

    assert worst_of(lambda p: SAM(sgd(p), rho=0.3), momentum_steps(gradient_of)) < 1e-10


def test_gsam_follows_its_plain_version():
    """The part of g1 orthogonal to g2 as the paper has it, by the cosine of all parameters."""
    def gradient_of(weights, gradient, _):
        g1 = gradient(weights)
        g2 = gradient({n: w + 0.3 * g1[n] / norm_of(g1) for n, w in weights.items()})
        cosine = sum((g1[n] * g2[n]).sum() for n in g1) / (norm_of(g1) * norm_of(g2))
        vertical = {n: g1[n] - cosine * norm_of(g1) * g2[n] / norm_of(g2) for n in g1}
        return {n: g2[n] - 0.2 * vertical[n] for n in g1}

    assert worst_of(lambda p: GSAM(sgd(p), rho=0.3, alpha=0.2),
                    momentum_steps(gradient_of)) < 1e-10


def test_asam_follows_its_plain_version():
    """pytorch_optimizer has no eta and scales vectors too; the authors do not."""
    rho, eta = 0.5, 0.01

    def gradient_of(weights, gradient, _):
        g = gradient(weights)
        t = {n: np.abs(w) + eta if w.ndim > 1 else np.ones_like(w) for n, w in weights.items()}
        length = norm_of({n: t[n] * g[n] for n in g})
        return gradient({n: w + rho * t[n] ** 2 * g[n] / length for n, w in weights.items()})

    assert worst_of(lambda p: ASAM(sgd(p), rho=rho, eta=eta), momentum_steps(gradient_of)) < 1e-10


def test_looksam_follows_its_plain_version():
    """pytorch_optimizer adds 1e-8 to a norm where the paper has none: good to 1e-8 only."""
    rho, k, alpha, shear = 0.3, 3, 0.7, {}

    def gradient_of(weights, gradient, step):
        g = gradient(weights)
        if step % k == 0:
            length = norm_of(g)
            g2 = gradient({n: w + rho * g[n] / length for n, w in weights.items()})
            shear.update({n: g2[n] - (g2[n] * g[n]).sum() / (g[n] ** 2).sum() * g[n] for n in g})
            return g2
        return {n: g[n] + alpha * np.linalg.norm(g[n]) / np.linalg.norm(f) * f
                for n, f in shear.items()}

    assert worst_of(lambda p: LookSAM(sgd(p), rho=rho, k=k, alpha=alpha),
                    momentum_steps(gradient_of)) < 1e-10


# --- twenty steps of rules that had a first step only


def test_tiger_follows_its_plain_version():
    """pytorch_optimizer's leaves out the rate relative to the weights, which the author has."""
    lr, wd, beta, m = 0.02, 0.1, 0.9, dict.fromkeys(SHAPES, 0.0)

    def update(n, w, g):
        m[n] = beta * m[n] + (1 - beta) * g
        if n == "bias":
            return w - lr / 2 * np.sign(m[n])
        return w - lr * np.sqrt((w**2).mean()) * (np.sign(m[n]) + wd * w)

    assert worst_of(lambda p: Tiger(list(p.values()), lr=lr, beta=beta, weight_decay=wd),
                    per_tensor(update)) < 1e-10


@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_is_the_one_of_pytorch_optimizer(nesterov):
    def groups(params):
        return [{"params": [params[n] for n in MATRICES], "lr": 2.0, "weight_decay": 0.1},
                {"params": [params["bias"]], "lr": 0.01, "weight_decay": 0.0}]

    settings = {"momentum": 0.9, "nesterov": nesterov}
    theirs = following(
        lambda p: pytorch_optimizer.LARS(groups(p), trust_coefficient=0.01, **settings),
        lambda optimizer, closure: optimizer.step(closure))
    assert worst_of(lambda p: LARS(groups(p), trust_coeff=0.01, eps=0.0, always_adapt=False,
                                   **settings), theirs) < 1e-10


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lars_adapts_with_and_without_decay(decay):
    """The paper: a step of lr trust_coeff ||W|| for any length of the gradient, if decay is 0."""
    w = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=DOUBLE))
    w.grad = torch.tensor([[0.0, 2.0]], dtype=DOUBLE)
    LARS([w], lr=1.0, trust_coeff=0.01, eps=0.0, weight_decay=decay).step()
    ratio = 0.01 * 5 / (2 + decay * 5)
    expected = [[3 - ratio * decay * 3, 4 - ratio * (2 + decay * 4)]]
    np.testing.assert_allclose(w.detach(), expected, rtol=1e-12)


@pytest.mark.parametrize(("ours", "theirs", "settings", "renamed"), [
    (Lion, pytorch_optimizer.Lion, {"betas": (0.9, 0.99)}, {"weight_decouple": True}),
    (Signum, pytorch_optimizer.SignSGD, {"momentum": 0.9}, {"weight_decouple": True}),
    (lambda p, **s: Signum(p, l2=True, **s), pytorch_optimizer.SignSGD, {"momentum": 0.9},
     {"weight_decouple": False})], ids=["lion", "signum", "signum_l2"])
def test_sign_rules_are_those_of_pytorch_optimizer(ours, theirs, settings, renamed):
    settings = {"lr": 0.01, "weight_decay": 0.5, **settings}
    reference = following(lambda p: theirs(list(p.values()), **settings, **renamed),
                          lambda optimizer, closure: optimizer.step(closure))
    assert worst_of(lambda p: ours(list(p.values()), **settings), reference) < 1e-10


def test_soft_lion_follows_its_plain_version():
    lr, wd, tau, m = 0.01, 0.1, 0.5, dict.fromkeys(SHAPES, 0.0)

    def update(n, w, g):
        c = 0.9 * m[n] + 0.1 * g
        m[n] = 0.99 * m[n] + 0.01 * g
        return w * (1 - lr * wd) - lr * c / (tau * np.sqrt((c**2).mean()) + np.abs(c))

    assert worst_of(lambda p: Lion(list(p.values()), lr=lr, weight_decay=wd, tau=tau),
                    per_tensor(update)) < 1e-10


def test_normuon_in_the_papers_scale_follows_its_plain_version():
    """O' = O / sqrt(v) by rows, then 0.2 sqrt(m n) O' / ||O'||."""
    lr, wd, beta2 = 0.01, 0.1, 0.9
    states, v = {n: {} for n in MATRICES}, dict.fromkeys(MATRICES, 0.0)
    adam = references.Adam((0.9, 0.999))

    def direction(n, g):
        o = references.per_matrix(references.keller5, nesterov(states[n], g, 0.95))
        rows = o if o.ndim == 3 else o.reshape(1, len(o), -1)
        v[n] = beta2 * v[n] + (1 - beta2) * (rows**2).mean(-1, keepdims=True)
        evened = rows / np.sqrt(v[n])
        length = np.linalg.norm(evened, axis=(1, 2), keepdims=True)
        return (0.2 * rows[0].size ** 0.5 * evened / length).reshape(g.shape)

    assert worst_of(lambda p: NorMuon(groups_of(p), lr=lr, weight_decay=wd, beta2=beta2,
                                      scale="paper"),
                    decayed_steps(lr, wd, direction, adam.direction)) < 1e-10
