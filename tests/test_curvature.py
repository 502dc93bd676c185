"""K-FAC and QK-Clip, which look at the model: hand-computed steps, plain float64 references."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from exp.grokking.train import TASK
from exp.harness.config import complete
from exp.harness.errors import ConfigError
from model import build_model
from optimizer import build_optimizer
from optimizer.kfac import KFAC
from optimizer.muon import Muon
from optimizer.parts.fisher import eigenbasis
from optimizer.parts.layers import rows_of
from optimizer.qk_clip import QKClip
from optimizer.sam import SAM

DOUBLE = torch.float64
PLAIN = {"lr": 1.0, "momentum": 0.0, "stat_decay": 0.0, "kl_clip": math.inf}


def linear(weight, bias=False):
    """A Linear with this weight, bias zero."""
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias, dtype=DOUBLE)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def backward(layer, inputs, gradients):
    """The mean over samples of <d, layer(a)>: row n of `gradients` is d of sample n."""
    outputs = layer(torch.as_tensor(inputs, dtype=DOUBLE))
    (outputs * torch.as_tensor(gradients, dtype=DOUBLE)).sum(-1).mean().backward()


# --- K-FAC by hand


def test_kfac_of_one_sample():
    """a = [1, 2], d = [3, 4]: V = d a^T, A = a a^T, G = d d^T, P = V / (5 * 25 + damping)."""
    layer = linear([[0.0, 0], [0, 0]])
    optimizer = KFAC(layer.parameters(), layer, damping=0.5, **PLAIN)
    backward(layer, [[1.0, 2]], [[3.0, 4]])
    optimizer.step()
    expected = -np.outer([3, 4], [1, 2]) / 125.5
    np.testing.assert_allclose(layer.weight.detach(), expected, rtol=1e-12)


def test_kfac_with_identity_factors_scales_the_gradient():
    """a, d = sqrt(2) e_n: A = G = V = I, P = V / (1 + damping)."""
    layer = linear([[0.0, 0], [0, 0]])
    optimizer = KFAC(layer.parameters(), layer, damping=0.25, **PLAIN)
    backward(layer, 2**0.5 * np.eye(2), 2**0.5 * np.eye(2))
    optimizer.step()
    np.testing.assert_allclose(layer.weight.detach(), -np.eye(2) / 1.25, atol=1e-12)


def test_kfac_starts_from_the_identity():
    """stat_decay .5, a = [2], d = [4]: A = (1 + 4) / 2, G = (1 + 16) / 2, V = 8."""
    layer = linear([[0.0]])
    optimizer = KFAC(layer.parameters(), layer, damping=0.75, **{**PLAIN, "stat_decay": 0.5})
    backward(layer, [[2.0]], [[4.0]])
    optimizer.step()
    assert float(layer.weight.detach()) == pytest.approx(-8 / (2.5 * 8.5 + 0.75), rel=1e-12)


def test_factored_tikhonov_by_hand():
    """A = 4, G = 9, V = 6, damping 1: pi = 2/3, (9 + 3/2) (4 + 2/3)."""
    layer = linear([[0.0]])
    optimizer = KFAC(layer.parameters(), layer, damping=1.0, tikhonov="factored", **PLAIN)
    backward(layer, [[2.0]], [[3.0]])
    optimizer.step()
    assert float(layer.weight.detach()) == pytest.approx(-6 / (10.5 * 14 / 3), rel=1e-12)


def test_momentum_and_decay_by_hand():
    """P = V / (1 + damping) = 1 for a = d = 1 and damping 0; W = 1, then M = P + W / 2."""
    layer = linear([[1.0]])
    optimizer = KFAC(layer.parameters(), layer, damping=0.0, weight_decay=0.5,
                     **{**PLAIN, "lr": 0.1, "momentum": 0.9})
    found = []
    for _ in range(2):
        optimizer.zero_grad()
        backward(layer, [[1.0]], [[1.0]])
        optimizer.step()
        found.append(float(layer.weight.detach()))
    first = 1 - 0.1 * 1.5
    assert found == pytest.approx([first, first - 0.1 * (0.9 * 1.5 + 1 + first / 2)], rel=1e-12)


# --- K-FAC against the exact Fisher matrix, where its factorization is exact


@pytest.mark.parametrize("damping", [0.3, 0.0])
def test_one_sample_is_the_exact_natural_gradient(damping):
    """F = vec(V) vec(V)^T; without damping its pseudo-inverse."""
    rng = np.random.default_rng(0)
    layer = linear(np.zeros((3, 4)), bias=True)
    optimizer = KFAC(layer.parameters(), layer, damping=damping, **PLAIN)
    a, d = rng.normal(size=(1, 4)), rng.normal(size=(1, 3))
    backward(layer, a, d)
    optimizer.step()
    v = np.outer(d, [*a[0], 1.0]).flatten()
    expected = np.linalg.pinv(np.outer(v, v) + damping * np.eye(15), rcond=1e-12) @ v
    found = torch.cat([layer.weight, layer.bias[:, None]], 1).detach().numpy()
    np.testing.assert_allclose(-found.flatten(), expected, rtol=1e-9, atol=1e-12)


def test_independent_inputs_and_gradients_give_the_exact_natural_gradient():
    """Every a with every d: E[a a^T (x) d d^T] is the product of the two means."""
    rng = np.random.default_rng(1)
    inputs, gradients = rng.normal(size=(7, 4)), rng.normal(size=(5, 3)) + 1
    pairs = [(a, d) for a in inputs for d in gradients]
    layer = linear(np.zeros((3, 4)))
    optimizer = KFAC(layer.parameters(), layer, damping=0.01, **PLAIN)
    backward(layer, np.array([a for a, _ in pairs]), np.array([d for _, d in pairs]))
    optimizer.step()
    scores = np.array([np.outer(d, a).flatten() for a, d in pairs])
    fisher = scores.T @ scores / len(pairs)
    expected = np.linalg.solve(fisher + 0.01 * np.eye(12), scores.mean(0))
    np.testing.assert_allclose(-layer.weight.detach().flatten(), expected, rtol=1e-10)


# --- K-FAC against a plain version of a convolution and a linear layer, twenty steps


class ConvNet(nn.Module):
    """images (N, 2, 5, 5) -> 4 numbers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, (3, 2), stride=2, padding=1)
        self.head = nn.Linear(27, 4)

    def forward(self, x):
        return self.head(torch.tanh(self.conv(x)).flatten(1))


class PlainKFAC:
    """The same network and rule in numpy; [weight | bias] matrices, Kronecker products solved."""

    def __init__(self, model, lr, momentum, weight_decay, stat_decay, damping, kl_clip,
                 factor_interval, inverse_interval, tikhonov, conv_norm):
        self.w = [torch.cat([layer.weight.flatten(1), layer.bias[:, None]], 1).detach().numpy()
                  for layer in (model.conv, model.head)]
        self.lr, self.momentum, self.wd, self.decay = lr, momentum, weight_decay, stat_decay
        self.damping, self.kl_clip, self.tikhonov = damping, kl_clip, tikhonov
        self.intervals, self.conv_norm = (factor_interval, inverse_interval), conv_norm
        self.factors = [(np.eye(w.shape[1]), np.eye(w.shape[0])) for w in self.w]
        self.used, self.m, self.t, self.clipped = None, [0.0, 0.0], 0, 0

    def step(self, images, targets):
        n, t = len(images), 9
        padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
        patches = np.stack([padded[:, :, 2 * i:2 * i + 3, 2 * j:2 * j + 2].reshape(n, -1)
                            for i in range(3) for j in range(3)], 1)  # (N, T, 12)
        patches = np.concatenate([patches, np.ones((n, t, 1))], 2)
        h = np.tanh(np.einsum("ntp,op->not", patches, self.w[0])).reshape(n, -1)
        h = np.concatenate([h, np.ones((n, 1))], 1)
        d2 = h @ self.w[1].T - targets  # per sample: loss = |y - target|^2 / 2
        d1 = ((d2 @ self.w[1])[:, :-1] * (1 - h[:, :-1] ** 2)).reshape(n, 3, t)
        v = [np.einsum("not,ntp->op", d1, patches) / n, d2.T @ h / n]
        if self.t % self.intervals[0] == 0:
            shift = t**2 if self.conv_norm == "kfac_pytorch" else 1
            new = [(np.einsum("ntp,ntq->pq", patches, patches) / n / shift,
                    np.einsum("not,npt->op", d1, d1) / (n * t) * shift),
                   (h.T @ h / n, d2.T @ d2 / n)]
            self.factors = [tuple(self.decay * x + (1 - self.decay) * y
                                  for x, y in zip(*pair, strict=True))
                            for pair in zip(self.factors, new, strict=True)]
        if self.t % self.intervals[1] == 0:
            self.used = self.factors
        p = [self.solve(*factors, grad) for factors, grad in zip(self.used, v, strict=True)]
        size = self.lr**2 * sum((x * y).sum() for x, y in zip(p, v, strict=True))
        nu = min(1.0, (self.kl_clip / size) ** 0.5)
        self.clipped += nu < 1
        for i in range(2):
            self.m[i] = self.momentum * self.m[i] + nu * p[i] + self.wd * self.w[i]
            self.w[i] = self.w[i] - self.lr * self.m[i]
        self.t += 1

    def solve(self, a, g, v):
        if self.tikhonov == "exact":
            matrix = np.kron(g, a) + self.damping * np.eye(v.size)
            return np.linalg.solve(matrix, v.flatten()).reshape(v.shape)
        pi = (np.trace(a) / len(a) / (np.trace(g) / len(g))) ** 0.5
        left = np.linalg.solve(g + self.damping**0.5 / pi * np.eye(len(g)), v)
        return np.linalg.solve(a + self.damping**0.5 * pi * np.eye(len(a)), left.T).T


@pytest.mark.parametrize("tikhonov", ["exact", "factored"])
@pytest.mark.parametrize("conv_norm", ["kfc", "kfac_pytorch"])
def test_kfac_follows_its_plain_version(tikhonov, conv_norm):
    torch.manual_seed(0)
    model = ConvNet().double()
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "stat_decay": 0.8,
                "damping": 0.03, "kl_clip": 0.05, "factor_interval": 2, "inverse_interval": 3,
                "tikhonov": tikhonov, "conv_norm": conv_norm}
    plain = PlainKFAC(model, **settings)
    optimizer = KFAC(model.parameters(), model, **settings)
    rng, worst = np.random.default_rng(0), 0.0
    for step in range(20):
        n = 5 + step % 3
        images, targets = rng.normal(size=(n, 2, 5, 5)), 3 * rng.normal(size=(n, 4))
        optimizer.zero_grad()
        y = model(torch.from_numpy(images))
        ((y - torch.from_numpy(targets)) ** 2).sum(1).mean().div(2).backward()
        optimizer.step()
        plain.step(images, targets)
        for layer, w in zip((model.conv, model.head), plain.w, strict=True):
            found = torch.cat([layer.weight.flatten(1), layer.bias[:, None]], 1).detach().numpy()
            worst = max(worst, np.abs(found - w).max() / np.abs(w).max())
    assert 0 < plain.clipped < 20
    assert worst < 1e-10


@pytest.mark.parametrize("settings", [
    {}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": (2, 1)}, {"stride": (1, 3)}])
def test_patches_and_rows_give_the_gradient_of_a_convolution(settings):
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, (3, 2), bias=False, dtype=DOUBLE, **settings)
    x = torch.randn(4, 2, 7, 6, dtype=DOUBLE)
    y = conv(x)
    grad = torch.randn_like(y)
    y.backward(grad)
    a, d = rows_of(conv, x, grad)
    assert len(a) == len(d) == y[:, 0].numel()
    torch.testing.assert_close(d.mT @ a, conv.weight.grad.flatten(1))


# --- K-FAC: clip, statistics, hooks, checkpoints


def train(model, optimizer, steps, seed=0, meddle=None):
    """Steps on random images, a new batch each; `meddle(model, x)` before the optimizer acts."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(6, 2, 5, 5, dtype=DOUBLE, generator=generator)

        def closure(x=x):
            optimizer.zero_grad()
            loss = (model(x) - x.sum((1, 2, 3))[:, None]).pow(2).mean()
            loss.backward()
            if meddle:
                meddle(model, x)
            return loss.detach()

        optimizer.step(closure)


def net(seed=0):
    torch.manual_seed(seed)
    return ConvNet().double()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


SHORT = {"factor_interval": 2, "inverse_interval": 3, "lr": 0.01}


@pytest.mark.parametrize("kl_clip", [1e-5, 1e5])
def test_the_step_is_as_long_as_the_clip_allows(kl_clip):
    """lr^2 nu^2 <P, V> over both layers is kl_clip, or what it is if that is less."""
    steps = {}
    for clip in (kl_clip, math.inf):
        model = net()
        before = weights(model)
        optimizer = KFAC(model.parameters(), model, lr=0.1, momentum=0.0, kl_clip=clip)
        train(model, optimizer, 1)
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        steps[clip] = weights(model) - before
    free = -0.1 * float(steps[math.inf] @ gradient)
    assert 1e-5 < free < 1e5
    assert -0.1 * float(steps[kl_clip] @ gradient) == pytest.approx(
        free if kl_clip > free else (kl_clip * free) ** 0.5, rel=1e-9)
    if kl_clip > free:
        assert torch.equal(steps[kl_clip], steps[math.inf])


def test_both_convolution_norms_are_one_step_without_the_identity_start():
    found = []
    for conv_norm in ("kfc", "kfac_pytorch"):
        model = net()
        optimizer = KFAC(model.parameters(), model, stat_decay=0.0, conv_norm=conv_norm, **SHORT)
        train(model, optimizer, 5)
        found.append(weights(model))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_micro_batches_of_the_mean_loss_are_one_batch():
    x, target = torch.randn(12, 2, 5, 5, dtype=DOUBLE), torch.randn(12, 4, dtype=DOUBLE)
    found = []
    for parts in (1, 3):
        model = net()
        optimizer = KFAC(model.parameters(), model, **SHORT)
        for _ in range(4):
            optimizer.zero_grad()
            for xs, ts in zip(x.chunk(parts), target.chunk(parts), strict=True):
                ((model(xs) - ts).pow(2).mean() / parts).backward()
            optimizer.step()
        found.append(weights(model))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_tokens_are_samples():
    """(batch, sequence, in) with a mean over all tokens is (batch * sequence, in)."""
    x, d = np.random.default_rng(0).normal(size=(2, 4, 5, 3))
    found = []
    for shape in ((4, 5, 3), (20, 3)):
        layer = linear(np.zeros((3, 3)), bias=True)
        optimizer = KFAC(layer.parameters(), layer)
        backward(layer, x.reshape(shape), d.reshape(shape))
        optimizer.step()
        found.append(weights(layer))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


def no_training(model, x):
    with torch.no_grad():
        model(x)
    model(x)  # never differentiated
    model.eval()
    torch.autograd.grad(model(x).sum(), list(model.parameters()))
    model.train()


def test_passes_that_are_no_training_leave_no_trace():
    found = []
    for meddle in (None, no_training):
        model = net()
        optimizer = KFAC(model.parameters(), model, **SHORT)
        train(model, optimizer, 6, meddle=meddle)
        found.append(weights(model))
    assert torch.equal(*found)


def test_the_second_pass_of_sam_replaces_the_first():
    found = []
    for wrapped in (False, True):
        model = net()
        optimizer = KFAC(model.parameters(), model, **SHORT)
        train(model, SAM(optimizer, rho=0.0) if wrapped else optimizer, 5)
        found.append(weights(model))
    assert torch.equal(*found)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_resume_is_exact_between_updates_of_factors_and_eigenvectors(steps):
    model = net()
    optimizer = KFAC(model.parameters(), model, **SHORT)
    train(model, optimizer, steps)
    buffer = io.BytesIO()
    torch.save({"m": model.state_dict(), "o": optimizer.state_dict()}, buffer)
    saved = copy.deepcopy(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    other = net(seed=1)
    fresh = KFAC(other.parameters(), other, **SHORT)
    other.load_state_dict(saved["m"])
    fresh.load_state_dict(saved["o"])
    train(model, optimizer, 7, seed=2)
    train(other, fresh, 7, seed=2)
    assert torch.equal(weights(model), weights(other))


def test_a_hooked_model_can_be_copied_and_pickled():
    model = net()
    optimizer = KFAC(model.parameters(), model)
    copied = copy.deepcopy(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    pickled = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    x = torch.randn(3, 2, 5, 5, dtype=DOUBLE)
    for twin in (copied, pickled):
        twin(x).sum().backward()
    assert all(recorder.rows == 0 for recorder in optimizer.recorders.values())
    assert len(model.conv._forward_hooks) == len(model.head._forward_hooks) == 1


def test_a_layer_that_is_never_called_is_an_error_by_name():
    layer = nn.Linear(3, 2)
    optimizer = KFAC(layer.parameters(), layer)
    F.linear(torch.ones(1, 3), layer.weight, layer.bias).sum().backward()
    with pytest.raises(ValueError, match=r"Linear\(in_features=3.*no training pass"):
        optimizer.step()


def test_a_bias_whose_weight_has_no_gradient_stays():
    layer = linear([[1.0, 2], [3, 4]], bias=True)
    optimizer = KFAC(layer.parameters(), layer)
    layer.bias.grad = torch.ones_like(layer.bias)
    optimizer.step()
    assert not layer.bias.any()


def test_a_gradient_that_is_not_finite_ends_in_weights_that_are_not():
    """So that the run is recorded as diverged, where eigh would have raised."""
    model = net()
    optimizer = KFAC(model.parameters(), model)
    model(torch.full((2, 2, 5, 5), torch.inf, dtype=DOUBLE)).sum().backward()
    optimizer.step()
    assert model.head.weight.isnan().all()


# --- K-FAC: who is on its track


def names(model, optimizer):
    """track -> the names of its parameters."""
    known = {id(p): name for name, p in model.named_parameters()}
    return {track: {known[id(p)] for group in optimizer.param_groups if group["track"] == track
                    for p in group["params"]} for track in ("matrix", "adamw")}


class Mixed(nn.Module):
    """Layers that K-FAC knows, and one of each kind that it does not."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.conv = nn.Conv2d(2, 3, 2)
        self.grouped = nn.Conv2d(2, 4, 2, groups=2)
        self.same = nn.Conv2d(2, 3, 3, padding="same")
        self.circular = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")
        self.table = nn.Embedding(5, 4)
        self.tied = nn.Linear(4, 5)
        self.tied.weight = self.table.weight
        self.frozen = nn.Linear(4, 4)
        self.frozen.weight.requires_grad_(False)
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.LayerNorm(4)
        self.raw = nn.Parameter(torch.ones(2, 3, 4))


@pytest.mark.parametrize("form", ["bare", "named", "groups", "built"])
def test_what_kfac_cannot_see_goes_to_adamw(form):
    model = Mixed()
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    bare = [p for _, p in trainable]
    if form == "built":
        optimizer = build_optimizer({"name": "kfac", "routing": "all", "adamw": {"lr": 0.5}}, model)
        assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 0.5]
    else:
        params = {"bare": bare, "named": trainable, "groups": [
            {"params": [p for p in bare if p.ndim > 1], "track": "matrix"},
            {"params": [p for p in bare if p.ndim < 2], "track": "adamw"}]}[form]
        optimizer = KFAC(params, model)
    known = {"linear.weight", "linear.bias", "conv.weight", "conv.bias"}
    assert names(model, optimizer) == {"matrix": known, "adamw": {n for n, _ in trainable} - known}
    routed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(routed) == len(set(routed))
    assert optimizer.diagnostics["layers"] == 2


def test_a_weight_on_the_adamw_track_keeps_its_bias_there():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    first, second = model
    optimizer = KFAC([{"params": [first.weight], "track": "adamw", "lr": 0.5},
                      {"params": [first.bias, *second.parameters()]}], model)
    assert names(model, optimizer) == {"matrix": {"1.weight", "1.bias"},
                                       "adamw": {"0.weight", "0.bias"}}
    optimizer.add_param_group({"params": nn.Parameter(torch.ones(3, 3))})
    assert optimizer.param_groups[-1]["track"] == "adamw"


def test_the_models_of_the_three_tasks():
    resnet = build_model({"name": "resnet18", "width": 2})
    for routing, expected in (("role", 20), ("shape", 21)):
        optimizer = build_optimizer({"name": "kfac", "routing": routing}, resnet)
        assert optimizer.diagnostics["layers"] == expected
        assert ("head.bias" in names(resnet, optimizer)["matrix"]) == (routing == "shape")
    grokking = build_model({"name": "grokking_transformer"}, vocab_size=7)
    optimizer = build_optimizer({"name": "kfac"}, grokking)  # raw parameters in its own products
    assert optimizer.diagnostics == {"kl_scale": 1.0, "layers": 0.0, "adamw_share": 1.0}
    qwen = build_model({"name": "qwen3", "hidden_size": 8, "num_hidden_layers": 1, "head_dim": 2,
                        "intermediate_size": 8}, vocab_size=11)
    optimizer = build_optimizer({"name": "kfac", "routing": "all"}, qwen)
    assert optimizer.diagnostics["layers"] == 7
    assert "network.model.embed_tokens.weight" in names(qwen, optimizer)["adamw"]


# --- QK-Clip


class OneHead(nn.Module):
    """d = 1, x = 1: the logit is W_Q W_K; `heads` query heads for one key head."""

    def __init__(self, value, heads=1):
        super().__init__()
        self.W_Q = nn.Parameter(torch.full((heads, 1, 1), value, dtype=DOUBLE))
        self.W_K = nn.Parameter(torch.full((1, 1, 1), value, dtype=DOUBLE))
        self.max_logits = None

    def attention_layers(self):
        return [self]

    def forward(self):
        logits = (self.W_Q * self.W_K).flatten()
        if self.max_logits is not None:
            self.max_logits = self.max_logits.maximum(logits.detach())
        return logits.sum()


def test_qk_clip_by_hand():
    """W_Q = W_K = 10: S = 100, tau = 25: gamma = .25, both 5; the next step changes nothing."""
    model = OneHead(10.0)
    optimizer = QKClip(torch.optim.SGD(model.parameters(), lr=0.0), model, tau=25.0)
    for expected in (100.0, 25.0):
        model().backward()
        optimizer.step()
        assert (float(model.W_Q.detach()), float(model.W_K.detach())) == (5.0, 5.0)
        assert optimizer.diagnostics["max_logit"] == expected
        assert optimizer.diagnostics["clipped_heads"] == (expected > 25)


def test_a_shared_key_head_is_left_alone():
    model = OneHead(10.0, heads=2)
    with torch.no_grad():
        model.W_Q[1] = 1.0
    optimizer = QKClip(torch.optim.SGD(model.parameters(), lr=0.0), model, tau=25.0)
    model().backward()
    optimizer.step()
    assert model.W_Q.flatten().tolist() == [2.5, 1.0]
    assert float(model.W_K.detach()) == 10.0


def transformer(seed=0, **sizes):
    torch.manual_seed(seed)
    settings = {"name": "grokking_transformer", "d_model": 8, "d_head": 4, "num_heads": 4,
                "d_mlp": 8, **sizes}
    model = build_model(settings, vocab_size=7).double()
    with torch.no_grad():
        for block in model.blocks:
            block.W_Q.mul_(torch.tensor([9.0, 0.1, 5.0, 0.1], dtype=DOUBLE)[:, None, None])
    return model


TOKENS = torch.arange(21).reshape(7, 3) % 7


def logits_of(model):
    """The largest causal logit of each head, layer by layer, computed apart from the model."""
    inputs, found = [], []
    hooks = [block.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
             for block in model.blocks]
    model.eval()
    with torch.no_grad():
        model(TOKENS)
    model.train()
    for hook in hooks:
        hook.remove()
    for i, (block, x) in enumerate(zip(model.blocks, inputs, strict=True)):
        scores = torch.einsum("hdm,bqm,hdn,bkn->hbqk", block.W_Q, x, block.W_K, x).detach() / 2
        scores = scores.masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf)
        last = -1 if i == len(inputs) - 1 else 0  # the last block has one query, the last position
        found.append(scores[:, :, last:].amax((1, 2, 3)))
    return found


def step_of(model, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(TOKENS), TOKENS[:, 0])
        loss.backward()
        return loss.detach()

    return optimizer.step(closure)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_after_the_step_no_logit_of_the_batch_exceeds_tau(num_layers):
    """At lr 0 the clip alone moves weights. The second layer then sees other inputs, so exact in
    the first one only; heads below tau stay as they are, bit for bit."""
    model, tau = transformer(num_layers=num_layers), 1.5
    before, start = logits_of(model), copy.deepcopy(model)
    optimizer = QKClip(torch.optim.SGD(model.parameters(), lr=0.0), model, tau=tau)
    step_of(model, optimizer)
    expected = before[0].clamp_max(tau)
    torch.testing.assert_close(logits_of(model)[0], expected, rtol=1e-12, atol=0)
    for block, was, s in zip(model.blocks, start.blocks, before, strict=True):
        over = s > tau
        assert 0 < over.sum() < 4
        for name, p in block.named_parameters():
            old = dict(was.named_parameters())[name]
            if name in ("W_Q", "W_K"):
                assert torch.equal(p[~over], old[~over])
                root = (tau / s[over]).sqrt()[:, None, None]
                torch.testing.assert_close(p[over], root * old[over], rtol=1e-12, atol=0)
            else:
                assert torch.equal(p, old)


def test_the_base_is_otherwise_unchanged():
    """One step of Muon under the clip: the same state, the same weights but for the factor."""
    plain, clipped = transformer(), transformer()
    s, tau = logits_of(plain)[0], 1.5
    base, other = Muon(plain.parameters()), Muon(clipped.parameters())
    optimizer = QKClip(other, clipped, tau=tau)
    assert torch.equal(step_of(plain, base), step_of(clipped, optimizer))
    gamma = (tau / s).clamp_max(1)[:, None, None]
    for (name, p), (_, q) in zip(plain.named_parameters(), clipped.named_parameters(),
                                 strict=True):
        factor = gamma.sqrt() if name.endswith(("W_Q", "W_K")) else 1
        torch.testing.assert_close(q, factor * p, rtol=1e-12, atol=0)
        for key, value in base.state[p].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other.state[q][key]))


def test_a_threshold_that_is_never_met_changes_no_bit():
    plain, clipped = transformer(), transformer()
    base = Muon(plain.parameters())
    optimizer = QKClip(Muon(clipped.parameters()), clipped, tau=1e6)
    for _ in range(5):
        step_of(plain, base)
        step_of(clipped, optimizer)
    assert torch.equal(weights(plain), weights(clipped))


def test_logits_are_recorded_in_training_only_and_only_when_asked():
    model = transformer()
    (block,) = model.attention_layers()
    model(TOKENS)
    assert block.max_logits is None
    expected = logits_of(model)[0]
    optimizer = QKClip(torch.optim.SGD(model.parameters(), lr=0.0), model)
    model.eval()
    model(TOKENS)
    assert block.max_logits.tolist() == [-math.inf] * 4
    model.train()
    for rows in TOKENS.split(3):  # micro-batches: the largest of all
        model(rows)
    torch.testing.assert_close(block.max_logits, expected, rtol=1e-12, atol=0)
    assert "max_logits" not in " ".join(model.state_dict())
    optimizer.step()
    assert block.max_logits.tolist() == [-math.inf] * 4


@pytest.mark.parametrize("model", [
    {"name": "resnet18", "width": 2},
    {"name": "qwen3", "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "head_dim": 2,
     "intermediate_size": 8}], ids=["resnet18", "qwen3"])
def test_a_model_that_exposes_no_logits_is_refused_by_name(model):
    built = build_model(model)
    with pytest.raises(ValueError, match=f"{type(built).__name__} does not expose.*QK-norm"):
        build_optimizer({"name": "adamw", "qk_clip": {}}, built)


# --- both in a configuration


def test_the_model_is_no_key_of_a_configuration():
    settings = {"experiment": {"task": "grokking", "epochs": 1}, "data": {"batch_size": 8},
                "model": {"name": "grokking_transformer"},
                "optimizer": {"name": "kfac", "qk_clip": {"tau": 5.0}}}
    done = complete(settings, TASK)["optimizer"]
    assert done["qk_clip"] == {"tau": 5.0}
    assert "model" not in done
    for table in (settings["optimizer"], settings["optimizer"]["qk_clip"]):
        table["model"] = "x"
        with pytest.raises(ConfigError, match="unknown key 'model'"):
            complete(settings, TASK)
        del table["model"]


@pytest.fixture
def decompositions(monkeypatch):
    """The shape and dtype of every call of torch.linalg.eigh; one in float32 of a matrix of zeros
    gives NaN, as LAPACK may for a low rank."""
    calls, real = [], torch.linalg.eigh

    def eigh(stack):
        calls.append((tuple(stack.shape), stack.dtype))
        values, vectors = real(stack)
        fails = stack.dtype == torch.float32 and not stack.any(-1).any(-1).all()
        return values, vectors * torch.nan if fails else vectors

    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    return calls


def test_an_eigenbasis_in_float32_is_that_in_float64_to_rounding(decompositions):
    torch.manual_seed(0)
    rows = torch.randn(2, 80, 40) * torch.logspace(0, -3, 40)
    factors = rows.mT @ rows  # of condition 1e6
    exact, _ = eigenbasis(factors.double(), torch.float32)
    values, vectors = eigenbasis(factors, torch.float32)
    assert [dtype for _, dtype in decompositions] == [torch.float64, torch.float32]
    largest = exact.amax()
    assert (values - exact).abs().max() < 1e-6 * largest
    assert ((vectors * values[:, None]) @ vectors.mT - factors).abs().max() < 3e-6 * largest


def test_an_eigenbasis_that_float32_cannot_find_is_found_in_float64(decompositions):
    values, vectors = eigenbasis(torch.zeros(1, 3, 3), torch.float32)
    assert [dtype for _, dtype in decompositions] == [torch.float32, torch.float64]
    assert not values.any() and torch.equal(vectors @ vectors.mT, torch.eye(3)[None])


def test_a_factor_that_is_not_finite_spoils_no_other():
    factors = torch.stack([torch.eye(3), torch.eye(3) * torch.inf, 2 * torch.eye(3)])
    values, vectors = eigenbasis(factors, torch.float32)
    assert torch.equal(values[[0, 2]], torch.tensor([[1.0] * 3, [2.0] * 3]))
    assert values[1].isnan().all() and vectors[1].isnan().all() and vectors[::2].isfinite().all()


@pytest.mark.parametrize(("damping", "dtype"), [(1e-3, torch.float32), (0.0, torch.float64)])
def test_factors_of_one_shape_are_decomposed_in_one_call(damping, dtype, decompositions):
    model = nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(4)), nn.Linear(3, 2))
    weights = [layer.weight for layer in model]
    optimizer = KFAC([{"params": weights, "track": "matrix", "damping": damping}], model)
    model(torch.randn(8, 3)).square().mean().backward()
    optimizer.step()
    shapes = sorted(shape for shape, _ in decompositions)
    assert shapes == [(1, 2, 2), (9, 3, 3)] and {kind for _, kind in decompositions} == {dtype}
