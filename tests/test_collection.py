"""Optimizers besides the ARS family: hand-computed steps, identities, independent references."""

import json

import numpy as np
import pytest
import pytorch_optimizer
import references
import torch
from test_ars_family import MATRICES, SHAPES, final, first_step, groups_of, trace
from torch import nn

from optimizer import available_optimizers
from optimizer.__main__ import main as optimizer_main
from optimizer.__main__ import read_boards
from optimizer.adamuon import AdaMuon
from optimizer.asam import ASAM
from optimizer.gsam import GSAM
from optimizer.lamb import LAMB
from optimizer.lars import LARS
from optimizer.lion import Lion
from optimizer.lookahead import Lookahead
from optimizer.looksam import LookSAM
from optimizer.muon import Muon
from optimizer.muon_squared import MuonSquared
from optimizer.normuon import NorMuon
from optimizer.sam import SAM
from optimizer.signum import Signum
from optimizer.tiger import Tiger


def scalar_steps(make, gradients, start=1.0):
    """The parameter after each step with the given gradients, and the optimizer."""
    w = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer, found = make([w]), []
    for g in gradients:
        w.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        found.append(float(w.detach()))
    return found, optimizer.state[w]


# --- hand-computed


def test_lion_by_hand():
    found, state = scalar_steps(lambda p: Lion(p, lr=0.1), [0.5, -0.4])
    assert found == pytest.approx([0.9, 1.0])
    assert float(state["exp_avg"]) == pytest.approx(0.00095)


def test_soft_lion_is_half_a_step_where_c_equals_tau_rms():
    found, _ = scalar_steps(lambda p: Lion(p, lr=0.1, tau=1.0), [0.5])
    assert found == pytest.approx([0.95])  # one entry: |c| = RMS(c)


def test_signum_by_hand():
    found, state = scalar_steps(lambda p: Signum(p, lr=0.1), [1.0, -0.5])
    assert found == pytest.approx([0.9, 0.8])
    assert float(state["momentum_buffer"]) == pytest.approx(0.04)


def test_signum_l2_decay_enters_the_sign():
    found, _ = scalar_steps(lambda p: Signum(p, lr=0.1, weight_decay=2.0, l2=True), [-1.0])
    assert found == pytest.approx([0.9])  # g + wd W = +1


def test_lamb_by_hand():
    w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    w.grad = torch.ones_like(w)
    LAMB([w], lr=0.01, eps=0.0, weight_decay=0.0, always_adapt=True).step()
    np.testing.assert_allclose(w.detach(), np.array([3, 4]) - 0.01 * 5 / np.sqrt(2))


def test_adamuon_first_step_by_hand():
    update = first_step(AdaMuon, [[3.0, 1], [-2, 5]], lr=1.0)
    np.testing.assert_allclose(update, -0.2 * np.array([[1, 1], [-1, 1]]), rtol=1e-6)


def test_adamuon_update_has_the_rms_of_adam():
    g = np.random.default_rng(0).normal(size=(2, 6, 9)).tolist()
    update = first_step(AdaMuon, g, lr=1.0)
    np.testing.assert_allclose(np.sqrt((update**2).mean(axis=(1, 2))), 0.2, rtol=1e-6)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_normuon_rows_are_equally_long_after_the_first_step(shape):
    g = np.random.default_rng(0).normal(size=shape)
    update = first_step(NorMuon, g.tolist(), lr=1.0)
    c = max(1, shape[0] / shape[1]) ** 0.5
    expected = c * np.sqrt(min(shape)) / np.sqrt(shape[0])
    np.testing.assert_allclose(np.linalg.norm(update, axis=1), expected, rtol=1e-6)


def test_normuon_of_a_square_matrix_starts_as_muon():
    g = np.random.default_rng(0).normal(size=(5, 5)).tolist()
    np.testing.assert_allclose(first_step(NorMuon, g), first_step(Muon, g), rtol=1e-6)


# --- identities


def test_lion_with_equal_betas_is_signum():
    def all_of(params):
        return [{"params": list(params.values())}]

    lion = final(lambda p: Lion(all_of(p), lr=0.01, betas=(0.9, 0.9), weight_decay=0.1))
    signum = final(lambda p: Signum(all_of(p), lr=0.01, momentum=0.9, weight_decay=0.1))
    assert torch.equal(lion, signum)


def test_muon_squared_without_second_moment_memory_is_muon_of_the_sign():
    g = np.random.default_rng(0).normal(size=(4, 6))
    squared = first_step(MuonSquared, g.tolist(), beta2=0.0)
    np.testing.assert_allclose(squared, first_step(Muon, np.sign(g).tolist()), atol=1e-9)


# --- twenty steps against implementations that are not ours


@pytest.mark.parametrize(("ours", "theirs"), [
    (lambda p: Lion(p, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1),
     lambda p: pytorch_optimizer.Lion(p, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1,
                                      weight_decouple=True)),
    (lambda p: Signum(p, lr=0.01, momentum=0.9, weight_decay=0.1),
     lambda p: pytorch_optimizer.SignSGD(p, lr=0.01, momentum=0.9, weight_decay=0.1,
                                         weight_decouple=True)),
], ids=["lion", "signum"])
def test_equals_pytorch_optimizer(ours, theirs):
    found = []
    for make in (ours, theirs):
        found.append(final(lambda p, make=make: make([{"params": list(p.values())}])))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)


def plain_lamb(states, weights, gradient, lr, wd, **_):
    g = gradient(weights)
    for n, w in weights.items():
        u = states[n].direction(g[n]) + wd * w
        weights[n] = w - lr * np.linalg.norm(w) / np.linalg.norm(u) * u


class Variance:
    """An exponential average that starts at zero."""

    value = 0.0

    def update(self, new, beta):
        """Advance and return."""
        self.value = beta * self.value + (1 - beta) * new
        return self.value


def nesterov(state, grad, mu):
    m = state.setdefault("m", Variance()).update(grad, mu)
    return (1 - mu) * grad + mu * m


def plain_adamuon(state, grad, mu=0.95):
    o = references.per_matrix(references.keller5, np.sign(nesterov(state, grad, mu)))
    v = state.setdefault("v", Variance()).update(o**2, mu)
    adapted = o / (np.sqrt(v) + 1e-8)
    return references.per_matrix(
        lambda a: 0.2 * np.sqrt(a.size) * a / (np.linalg.norm(a) + 1e-8), adapted)


def plain_normuon(state, grad, mu=0.95, beta2=0.9):
    u = nesterov(state, grad, mu)
    stack = u if u.ndim == 3 else u.reshape(1, len(u), -1)
    o = np.stack([references.keller5(matrix) for matrix in stack])
    v = state.setdefault("v", Variance()).update((o**2).mean(-1, keepdims=True), beta2)
    evened = o / (np.sqrt(v) + 1e-10)
    kept, length = (np.linalg.norm(x, axis=(1, 2), keepdims=True) for x in (o, evened))
    c = max(1, o.shape[1] / o.shape[2]) ** 0.5
    return (c * evened * kept / (length + 1e-10)).reshape(u.shape)


def plain_muon_squared(state, grad, mu=0.95, beta2=0.9):
    u = nesterov(state, grad, mu)
    v = state.setdefault("v", Variance()).update(grad**2, beta2)
    m, n = u.shape[-2:] if u.ndim == 3 else u.reshape(len(u), -1).shape
    white = u / (np.sqrt(v) + 1e-10)
    return max(1, m / n) ** 0.5 * references.per_matrix(references.keller5, white)


def test_lamb_follows_its_plain_version():
    states = {n: references.Adam((0.9, 0.95), 1e-6) for n in SHAPES}
    worst, _ = trace(
        lambda p: LAMB(list(p.values()), lr=0.01, betas=(0.9, 0.95), weight_decay=0.1),
        lambda weights, gradient: plain_lamb(states, weights, gradient, 0.01, 0.1))
    assert worst < 1e-10


@pytest.mark.parametrize(("cls", "plain", "settings"), [
    (AdaMuon, plain_adamuon, {}), (NorMuon, plain_normuon, {"beta2": 0.9}),
    (MuonSquared, plain_muon_squared, {"beta2": 0.9})], ids=["adamuon", "normuon", "muon_squared"])
def test_matrix_rules_follow_their_plain_version(cls, plain, settings):
    lr, wd = 0.01, 0.1
    states = {n: {} for n in MATRICES}
    adam = references.Adam((0.9, 0.999))

    def reference(weights, gradient):
        g = gradient(weights)
        for n, w in weights.items():
            move = adam.direction(g[n]) if n == "bias" else plain(states[n], g[n])
            weights[n] = w * (1 - lr * wd) - lr * move

    worst, _ = trace(lambda p: cls(groups_of(p), lr=lr, weight_decay=wd, **settings), reference)
    assert worst < 1e-10


# --- wrappers


def test_lookahead_by_hand():
    w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = Lookahead(torch.optim.SGD([w], lr=1.0), k=5, alpha=0.5)
    found = []
    for _ in range(10):
        w.grad = torch.ones_like(w)
        optimizer.step()
        found.append(float(w.detach()))
    assert found == [-1, -2, -3, -4, -2.5, -3.5, -4.5, -5.5, -6.5, -5]


def quadratic_closure(w, calls=None):
    def closure():
        w.grad = None
        loss = (w**2).sum() / 2
        loss.backward()
        if calls is not None:
            calls.append(w.detach().clone())
        return loss.detach()

    return closure


def test_gsam_by_hand():
    """g1 = [1, 0], g2 = [2, 2], alpha .4: vert = [.5, -.5], g = [1.8, 2.2]."""
    w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    gradients = iter([[1.0, 0.0], [2.0, 2.0]])

    def closure():
        w.grad = torch.tensor(next(gradients), dtype=torch.float64)
        return torch.tensor(0.0)

    GSAM(torch.optim.SGD([w], lr=1.0), alpha=0.4).step(closure)
    np.testing.assert_allclose(w.detach(), [-1.8, -2.2])


def test_gsam_radius_follows_the_learning_rate():
    w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    base = torch.optim.SGD([w], lr=1.0)
    optimizer, visited = GSAM(base, rho=0.5), []
    optimizer.param_groups[0].update(initial_lr=1.0, lr=0.1)
    optimizer.step(quadratic_closure(w, visited))
    np.testing.assert_allclose(visited[1] - visited[0], [0.03, 0.04], atol=1e-12)


def test_looksam_by_hand():
    """Step 1 at g1 = [1, 0], g2 = [2, 3]: f = [0, 3]; step 2 injects it: [3, 4] -> [3, 4.5]."""
    w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    gradients = iter([[1.0, 0.0], [2.0, 3.0], [3.0, 4.0]])

    def closure():
        w.grad = torch.tensor(next(gradients), dtype=torch.float64)
        return torch.tensor(0.0)

    optimizer = LookSAM(torch.optim.SGD([w], lr=1.0), k=2, alpha=0.1)
    optimizer.step(closure)
    np.testing.assert_allclose(w.detach(), [-2, -3])
    optimizer.step(closure)
    np.testing.assert_allclose(w.detach(), [-5, -7.5], atol=1e-10)


def test_looksam_with_k_1_is_sam():
    def run(make):
        w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
        optimizer = make(torch.optim.SGD([w], lr=0.1, momentum=0.9))
        for _ in range(5):
            optimizer.step(quadratic_closure(w))
        return w.detach()

    assert torch.equal(run(lambda b: LookSAM(b, rho=0.3, k=1)), run(lambda b: SAM(b, rho=0.3)))


def test_wrappers_nest_and_restore():
    def make(w):
        return Lookahead(LookSAM(Muon([w]), k=3), k=2)

    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
    optimizer = make(w)
    for _ in range(5):
        optimizer.step(quadratic_closure(w))
    copy = nn.Parameter(w.detach().clone())
    other = make(copy)
    other.load_state_dict(optimizer.state_dict())
    for _ in range(5):
        optimizer.step(quadratic_closure(w))
        other.step(quadratic_closure(copy))
    assert torch.equal(w, copy)


def test_lars_by_hand():
    w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    w.grad = torch.tensor([0.6, 0.8], dtype=torch.float64)
    LARS([w], lr=1.0, eps=0.0, always_adapt=True).step()
    np.testing.assert_allclose(w.detach(), [3 - 0.005 * 0.6, 4 - 0.005 * 0.8])


def test_lars_decays_inside_the_ratio():
    w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    w.grad = torch.tensor([0.6, 0.8], dtype=torch.float64)
    LARS([w], lr=1.0, eps=0.0, weight_decay=0.5).step()
    ratio = 1e-3 * 5 / (1 + 0.5 * 5)
    np.testing.assert_allclose(w.detach(), [3 - ratio * 2.1, 4 - ratio * 2.8])


@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_with_ratio_1_is_torch_sgd(nesterov):
    """timm's rule without decay, ratio 1: SGD with momentum, dampening 0."""
    def all_of(params):
        return [{"params": list(params.values())}]

    settings = {"lr": 0.01, "momentum": 0.9, "nesterov": nesterov}
    ours = final(lambda p: LARS(all_of(p), **settings, always_adapt=False))
    torch.testing.assert_close(ours, final(lambda p: torch.optim.SGD(all_of(p), **settings)))


def test_tiger_by_hand():
    w = nn.Parameter(torch.tensor([[1.0, -1], [1, 1]], dtype=torch.float64))
    b = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    zero = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    for p in (w, b, zero):
        p.grad = torch.full_like(p, 7.0)
    Tiger([w, b, zero], lr=0.1, weight_decay=0.5).step()
    np.testing.assert_allclose(w.detach(), np.array([[1, -1], [1, 1]])
                               - 0.1 * (1 + 0.5 * np.array([[1, -1], [1, 1]])))
    np.testing.assert_allclose(b.detach(), [2 - 0.05])
    np.testing.assert_allclose(zero.detach(), -0.1 * 1e-3)


def test_asam_by_hand():
    """W = [3, -4], g = [1, 1], eta 0, rho 1: offset [1.8, 3.2]."""
    w = nn.Parameter(torch.tensor([[3.0, -4.0]], dtype=torch.float64))
    visited = []

    def closure():
        visited.append(w.detach().clone())
        w.grad = torch.ones_like(w)
        return torch.tensor(0.0)

    ASAM(torch.optim.SGD([w], lr=1.0), rho=1.0, eta=0.0).step(closure)
    np.testing.assert_allclose(visited[1] - visited[0], [[1.8, 3.2]], atol=1e-9)


# --- python -m optimizer


def test_boards_are_named_by_file_and_damaged_ones_left_out(tmp_path):
    arms = {"a": {"optimizer": {"name": "ARS2-Neo", "k": 1}},
            "b": {"optimizer": {"name": "muon", "sam": {}, "adamw": {}}},
            "c": {"optimizer": {"name": "pytorch_optimizer:MARS"}}}
    (tmp_path / "race.json").write_text(json.dumps({"arms": arms}))
    (tmp_path / "half.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    assert read_boards(tmp_path) == {"race": {"ars2_neo", "muon", "sam"}}
    assert read_boards(tmp_path / "none") == {}


def test_the_table_lists_every_optimizer_and_one_can_be_described(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["optimizer"])
    assert optimizer_main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == available_optimizers()
    (looksam,) = [line for line in lines if line.startswith("looksam")]
    assert "1.1" in looksam
    assert "arXiv 2203.02714" in looksam and "by hand, plain numpy" in looksam
    monkeypatch.setattr("sys.argv", ["optimizer", "ARS2-Neo"])
    assert optimizer_main() == 0
    assert "adaptive_lambda: float = 2.0" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["optimizer", "adamx"])
    assert optimizer_main() == 2
    assert "unknown optimizer 'adamx'" in capsys.readouterr().err
