"""Shampoo, SOAP and SOAP-Muon: hand-computed steps, limits, independent references."""

import numpy as np
import pytest
import pytorch_optimizer
import references
import torch
from test_ars_family import MATRICES, SHAPES, first_step, groups_of, trace
from torch import nn

from optimizer.muon import Muon
from optimizer.muon_squared import MuonSquared
from optimizer.parts import kronecker
from optimizer.parts.polar import COEFFICIENTS, exact_polar, newton_schulz
from optimizer.shampoo import Shampoo
from optimizer.soap import SOAP
from optimizer.soap_muon import SOAPMuon

DOUBLE = torch.float64
RULES = {"shampoo": Shampoo, "soap": SOAP, "soap_muon": SOAPMuon}


def steps_of(make, gradients, dtype=DOUBLE):
    """A zero-initialized weight after a step with each of the gradients, and the optimizer."""
    w = nn.Parameter(torch.zeros(np.shape(gradients[0]), dtype=dtype))
    optimizer = make([w])
    for g in gradients:
        w.grad = torch.as_tensor(np.asarray(g)).to(dtype)
        optimizer.step()
    return w.detach().double().numpy(), optimizer


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def shampoo_step(gradient, **settings):
    """P of the first step."""
    settings = {"lr": 1.0, "eps": 0.0, **settings}
    return -steps_of(lambda p: Shampoo(p, **settings), [gradient])[0]


# --- Shampoo, first steps


@pytest.mark.parametrize(("exponent", "expected"), [(0.25, [1.0, 1.0]), (0.5, [0.5, 1.0])])
def test_shampoo_by_hand(exponent, expected):
    found = shampoo_step(np.diag([2.0, 1.0]), exponent=exponent)
    np.testing.assert_allclose(found, np.diag(expected), atol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"beta2": 0.9}, {"momentum": 0.0}])
@pytest.mark.parametrize("name", MATRICES)
def test_the_first_shampoo_step_is_muons(name, settings):
    g = gaussian(*SHAPES[name])
    expected = references.per_matrix(references.msign, g)
    np.testing.assert_allclose(shampoo_step(g, **settings), expected, atol=1e-10)
    muon = first_step(Muon, g.tolist(), lr=1.0, scale="moonlight")
    m, n = expected.shape[-2:] if g.ndim == 3 else expected.reshape(len(g), -1).shape
    np.testing.assert_allclose(-muon / (0.2 * max(m, n) ** 0.5), expected, atol=1e-10)


def test_one_side_alone_takes_the_whole_root():
    g = gaussian(4, 9)
    found = shampoo_step(g, max_precond_dim=4)
    np.testing.assert_allclose(found, references.msign(g), atol=1e-10)


def test_without_a_side_shampoo_is_sgd_with_momentum():
    gradients = gaussian(5, 4, 9)
    found, optimizer = steps_of(
        lambda p: Shampoo(p, lr=1.0, momentum=0.8, max_precond_dim=0), gradients)
    average, expected = 0.0, 0.0
    for t, g in enumerate(gradients, 1):
        average = 0.8 * average + 0.2 * g
        expected = expected - average / (1 - 0.8**t)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert not {"left", "right"} & set(next(iter(optimizer.state.values())))


def test_large_eps_makes_shampoo_sgd():
    g = gaussian(4, 9)
    np.testing.assert_allclose(shampoo_step(g, eps=1e16), 1e-8 * g, rtol=1e-10)


@pytest.mark.parametrize(("graft", "length"), [("sgd", 5.0), ("adam", np.sqrt(2))])
def test_grafting_by_hand(graft, length):
    """G = diag(3, 4): P = I takes the length of G, or of Adam's sign(G)."""
    found = shampoo_step(np.diag([3.0, 4.0]), graft=graft)
    np.testing.assert_allclose(found, np.eye(2) * length / np.sqrt(2), rtol=1e-8, atol=1e-12)


# --- the parts


def test_inverse_root_by_hand():
    statistics = torch.diag_embed(torch.tensor([[16.0, 1.0], [0.0, 0.0]], dtype=DOUBLE))
    roots = kronecker.inverse_root(statistics, 0.25, 0.0)
    torch.testing.assert_close(roots[0], torch.diag(torch.tensor([0.5, 1.0], dtype=DOUBLE)))
    assert torch.equal(roots[1], torch.zeros(2, 2, dtype=DOUBLE))
    roots = kronecker.inverse_root(statistics, 0.5, 9.0)
    torch.testing.assert_close(roots[1], torch.eye(2, dtype=DOUBLE) / 3)


def test_rounding_below_zero_is_no_root():
    statistics = torch.diag_embed(torch.tensor([[1.0, -1e-17]], dtype=DOUBLE))
    root = kronecker.inverse_root(statistics, 0.25, 0.0)
    assert float(root[0, 1, 1]) == pytest.approx((2 * torch.finfo(DOUBLE).eps) ** -0.25)


def test_power_steps_find_the_eigenbasis():
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.normal(size=(3, 4, 4)))[0]
    values = np.array([8.0, 4.0, 2.0, 1.0])
    statistics = torch.from_numpy(vectors * values @ vectors.swapaxes(-1, -2))
    bases = torch.from_numpy(np.linalg.qr(rng.normal(size=(3, 4, 4)))[0])
    for _ in range(60):
        bases, _ = kronecker.power_step(statistics, bases)
    found = bases.mT @ statistics @ bases
    torch.testing.assert_close(found, torch.diag_embed(torch.from_numpy(values)).expand(3, 4, 4))


def test_a_power_step_sorts_and_tells_the_order():
    statistics = torch.diag_embed(torch.tensor([[1.0, 3.0, 2.0]], dtype=DOUBLE))
    bases, order = kronecker.power_step(statistics, torch.eye(3, dtype=DOUBLE)[None])
    assert order.tolist() == [[1, 2, 0]]
    torch.testing.assert_close(bases.abs(), torch.eye(3, dtype=DOUBLE)[None][..., order[0]])


def test_eigh_is_computed_in_float64_and_says_so_when_it_fails(monkeypatch):
    real, seen = torch.linalg.eigh, []

    def eigh(matrix):
        seen.append(matrix.dtype)
        values, vectors = real(matrix)
        return values, vectors * factor

    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    factor = 1.0
    root = kronecker.inverse_root(16 * torch.eye(2)[None], 0.25, 0.0)
    torch.testing.assert_close(root, 0.5 * torch.eye(2)[None])
    assert seen == [DOUBLE]
    factor = float("nan")
    with pytest.raises(torch.linalg.LinAlgError, match=r"\(1, 2, 2\) gave NaN"):
        kronecker.inverse_root(torch.eye(2)[None], 0.25, 0.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", RULES)
def test_a_gradient_that_is_not_finite_spoils_its_own_matrix_only(name, bad):
    gradients = gaussian(6, 2, 3, 4)
    expected, _ = steps_of(RULES[name], gradients)
    gradients[2, 1, 0, 0] = bad
    found, _ = steps_of(RULES[name], gradients)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
    assert not np.isfinite(found[1]).all()  # so that the loss tells, and the run ends as diverged


@pytest.mark.parametrize("name", RULES)
def test_the_first_gradient_may_be_zero(name):
    found, _ = steps_of(lambda p: RULES[name](p, lr=0.01), [np.zeros((3, 4)), *gaussian(5, 3, 4)])
    assert np.isfinite(found).all()
    assert np.abs(found).max() > 0


@pytest.mark.parametrize("name", RULES)
def test_rows_without_gradient_stay(name):
    gradients = gaussian(12, 2, 6, 9)
    gradients[:, :, 4:] = 0
    found, _ = steps_of(
        lambda p: RULES[name](p, precondition_frequency=3), gradients, torch.float32)
    assert not found[:, 4:].any()
    assert (found[:, :4] != 0).all()


@pytest.mark.parametrize(("eps", "low", "high"), [(1e-15, 0.5, 1.0), (1e-6, 0.0, 0.01)])
def test_what_soap_muon_makes_of_a_direction_never_taken(eps, low, high):
    """Rounding over rounding (see its docstring), measured beside what it makes of the others."""
    q = np.linalg.qr(gaussian(24, 24))[0]
    gradients = 1e-3 * np.einsum("ij,tjk->tik", q[:, :16], gaussian(40, 16, 32, seed=1))
    found, _ = steps_of(lambda p: SOAPMuon(p, eps=eps), gradients, torch.float32)
    taken, never = (np.sqrt(np.mean((part.T @ found) ** 2)) for part in (q[:, :16], q[:, 16:]))
    assert low < never / taken < high


@pytest.mark.parametrize(("name", "eighs", "qrs"), [
    ("shampoo", 5 + 3, 0), ("soap", 1, 3), ("soap_muon", 1, 3)])
def test_the_interval_counts_decompositions(name, eighs, qrs, monkeypatch):
    """20 steps, every 5: Shampoo at 1-5, 10, 15, 20; SOAP makes bases, then 19 updates."""
    calls = {"eigh": 0, "qr": 0}
    for key in calls:
        real = getattr(torch.linalg, key)

        def counted(matrix, key=key, real=real):
            calls[key] += 1
            return real(matrix)

        monkeypatch.setattr(torch.linalg, key, counted)
    steps_of(lambda p: RULES[name](p, precondition_frequency=5), gaussian(20, 3, 4))
    assert calls == {"eigh": 2 * eighs, "qr": 2 * qrs}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resuming_between_refreshes_is_bitwise_equal(name, dtype, tmp_path):
    def make(params):
        return RULES[name](params, precondition_frequency=4)

    gradients = gaussian(13, 2, 3, 4)
    whole, _ = steps_of(make, gradients, dtype)
    half, optimizer = steps_of(make, gradients[:6], dtype)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    w = nn.Parameter(torch.from_numpy(half).to(dtype))
    resumed = make([w])
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for g in gradients[6:]:
        w.grad = torch.from_numpy(g).to(dtype)
        resumed.step()
    np.testing.assert_array_equal(w.detach().double().numpy(), whole)
    state = [v for v in resumed.state[w].values() if torch.is_tensor(v)]
    assert {v.dtype for v in state} == {torch.float32}


# --- identities of SOAP and SOAP-Muon


def test_soap_without_rotation_is_adamw():
    settings = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-3, "weight_decay": 0.2}
    gradients = gaussian(20, 4, 9)
    found, _ = steps_of(lambda p: SOAP(p, max_precond_dim=0, **settings), gradients)
    expected, _ = steps_of(lambda p: torch.optim.AdamW(p, **settings), gradients)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("frequency", [1, 3, 100])
def test_soap_of_diagonal_gradients_is_adam_from_the_second_step(frequency):
    gradients = [np.diag(d) for d in gaussian(20, 4)]
    settings = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    found, _ = steps_of(
        lambda p: SOAP(p, precondition_frequency=frequency, **settings), gradients)
    expected, _ = steps_of(lambda p: torch.optim.AdamW(p, **settings), gradients[1:])
    # eps keeps small what the QR leaves beside the diagonal: 1e-17 of a gradient of 1.
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["soap", "soap_muon"])
def test_the_first_step_makes_the_bases_and_leaves_the_weights(name):
    g = gaussian(3, 4, 6)
    found, optimizer = steps_of(lambda p: RULES[name](p, weight_decay=0.1), [g])
    assert not found.any()
    entry = next(iter(optimizer.state.values()))
    turned = kronecker.rotated(torch.from_numpy(g), entry).abs()
    values = torch.linalg.svdvals(torch.from_numpy(g))
    torch.testing.assert_close(turned[..., :4], torch.diag_embed(values), atol=1e-12, rtol=0)


def muon_pair(settings, other, gradients, cls=Muon):
    """SOAP-Muon and Muon or Muon^2, which see the same gradients but the first."""
    shared = {"lr": 1.0, "orthogonalizer": "svd", "weight_decay": 0.01}
    found, _ = steps_of(lambda p: SOAPMuon(p, **shared, **settings), gradients)
    seen = gradients if settings.get("max_precond_dim") == 0 else gradients[1:]
    return found, steps_of(lambda p: cls(p, **shared, **other), seen)[0]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (3, 4, 5)])
def test_soap_muon_of_a_constant_second_moment_is_muon(shape, nesterov):
    """The rotation alone adds nothing: large eps, V does not matter."""
    found, expected = muon_pair(
        {"betas": (0.9, 0.95), "eps": 1e13, "nesterov": nesterov, "precondition_frequency": 3},
        {"momentum": 0.9, "nesterov": nesterov}, gaussian(20, *shape))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_soap_muon_without_rotation_is_muon_squared():
    found, expected = muon_pair(
        {"betas": (0.9, 0.95), "eps": 0.0, "max_precond_dim": 0, "nesterov": True},
        {"momentum": 0.9, "beta2": 0.95, "eps": 0.0}, gaussian(20, 4, 9), MuonSquared)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("orthogonalizer", ["svd", *COEFFICIENTS])
def test_orthogonalizing_in_the_basis_or_out_of_it_is_the_same(orthogonalizer):
    rng = np.random.default_rng(0)
    entry = {"left_basis": torch.from_numpy(np.linalg.qr(rng.normal(size=(2, 4, 4)))[0]),
             "right_basis": torch.from_numpy(np.linalg.qr(rng.normal(size=(2, 6, 6)))[0])}
    white = torch.from_numpy(rng.normal(size=(2, 4, 6)))

    def polar(x):
        return exact_polar(x) if orthogonalizer == "svd" else newton_schulz(x, 5, orthogonalizer)

    torch.testing.assert_close(polar(kronecker.rotated_back(white, entry)),
                               kronecker.rotated_back(polar(white), entry))


@pytest.mark.parametrize("angles", [(0.0, 0.0), (0.3, -1.1)])
def test_what_soap_muon_adds_by_hand(angles):
    """The first gradient, diagonal in some bases, gives the bases; in these Adam's first
    direction of the next is its sign, all ones here, of which msign is 1/2 everywhere."""
    u, v = (np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in angles)
    g = np.array([[1.0, 2.0], [3.0, 4.0]])
    gradients = [u @ np.diag([3.0, 1.0]) @ v.T, u @ g @ v.T]
    found, _ = steps_of(lambda p: SOAPMuon(p, lr=1.0, orthogonalizer="svd"), gradients)
    np.testing.assert_allclose(found, -u @ np.full((2, 2), 0.5) @ v.T, atol=1e-12)
    muon, _ = steps_of(lambda p: Muon(p, lr=1.0, orthogonalizer="svd"), gradients[1:])
    turned = np.array([[-0.514496, 0.857493], [0.857493, 0.514496]])
    np.testing.assert_allclose(muon, -u @ turned @ v.T, atol=1e-6)


# --- twenty steps against plain float64 versions


def stack_of(g):
    return g if g.ndim == 3 else g.reshape(1, len(g), -1)


def plain_root(statistic, exponent, eps):
    values, vectors = np.linalg.eigh(statistic)
    return vectors * (np.maximum(values, 0) + eps) ** -exponent @ vectors.T


class PlainShampoo:
    """One matrix."""

    def __init__(self, momentum=0.9, beta2=1.0, eps=1e-6, exponent=0.25, graft="none",
                 precondition_frequency=1, max_precond_dim=1024):
        self.momentum, self.beta2, self.eps, self.graft = momentum, beta2, eps, graft
        self.exponent, self.frequency = exponent, precondition_frequency
        self.max_dim, self.t = max_precond_dim, 0
        self.left = self.right = self.m = self.v = 0.0

    def direction(self, g):
        self.t += 1
        new = 1 if self.beta2 == 1 else 1 - self.beta2
        short = 1 if self.beta2 == 1 else 1 - self.beta2**self.t
        self.left = self.beta2 * self.left + new * g @ g.T
        self.right = self.beta2 * self.right + new * g.T @ g
        self.v = self.beta2 * self.v + new * g**2
        self.m = self.momentum * self.m + (1 - self.momentum) * g
        if self.t <= self.frequency or self.t % self.frequency == 0:
            both = max(g.shape) <= self.max_dim
            exponent = self.exponent if both else 2 * self.exponent
            self.roots = [plain_root(s / short, exponent, self.eps)
                          if len(s) <= self.max_dim else np.eye(len(s))
                          for s in (self.left, self.right)]
        m = self.m / (1 - self.momentum**self.t)
        p = self.roots[0] @ m @ self.roots[1]
        if self.graft == "sgd":
            p *= np.linalg.norm(m) / np.linalg.norm(p)
        if self.graft == "adam":
            p *= np.linalg.norm(m / (np.sqrt(self.v / short) + 1e-8)) / np.linalg.norm(p)
        return p


class PlainSOAP:
    """One matrix. Where the first statistic has a null space its basis is a matter of rounding:
    the bases of the first step are the other's, once they are seen to be eigenbases."""

    def __init__(self, betas=(0.9, 0.95), shampoo_beta=0.9, eps=1e-8, frequency=10,
                 nesterov=False):
        self.betas, self.shampoo_beta, self.eps = betas, shampoo_beta, eps
        self.frequency, self.nesterov, self.t = frequency, nesterov, None
        self.m = self.v = self.left = self.right = 0.0

    def direction(self, g, bases):
        if self.t is None:
            self.follow(g)
            for q, statistic in zip(bases, (self.left, self.right), strict=True):
                np.testing.assert_allclose(q.T @ q, np.eye(len(q)), atol=1e-12)
                turned = q.T @ statistic @ q
                np.testing.assert_allclose(turned, np.diag(np.diag(turned)), atol=1e-12)
                assert (np.diff(np.diag(turned)) < 1e-12).all()
            self.ql, self.qr, self.t = *bases, 0
            return np.zeros_like(g)
        self.t += 1
        b1, b2 = self.betas
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * (self.ql.T @ g @ self.qr) ** 2
        m = b1 * self.m + (1 - b1) * g if self.nesterov else self.m
        v_hat = self.v / (1 - b2**self.t)
        u = self.ql.T @ (m / (1 - b1**self.t)) @ self.qr / (np.sqrt(v_hat) + self.eps)
        u = self.ql @ u @ self.qr.T
        self.follow(g)
        if self.t % self.frequency == 0:
            self.ql, rows = self.refreshed(self.left, self.ql)
            self.qr, columns = self.refreshed(self.right, self.qr)
            self.v = self.v[rows][:, columns]
        return u

    def follow(self, g):
        beta = self.shampoo_beta
        self.left = beta * self.left + (1 - beta) * g @ g.T
        self.right = beta * self.right + (1 - beta) * g.T @ g

    @staticmethod
    def refreshed(statistic, q):
        order = np.argsort(-np.diag(q.T @ statistic @ q))
        return np.linalg.qr(statistic @ q[:, order])[0], order


def follows(make, direction, lr=0.01, wd=0.1):
    """Worst relative difference from a plain version: `direction(name, index, g, entry)` of each
    matrix, `entry` the state of the optimizer under test."""
    adam, held = references.Adam(), {}

    def held_make(params):
        held.update(params=params, optimizer=make(groups_of(params)))
        return held["optimizer"]

    def reference(weights, gradient):
        g = gradient(weights)
        for n, w in weights.items():
            if n == "bias":
                move = adam.direction(g[n])
            else:
                entry = held["optimizer"].state[held["params"][n]]
                move = np.stack([direction(n, i, matrix, entry)
                                 for i, matrix in enumerate(stack_of(g[n]))]).reshape(w.shape)
            # The first step of SOAP leaves the weights: no decay either.
            decay = 1 - lr * wd if n == "bias" or move.any() else 1
            weights[n] = w * decay - lr * move

    return trace(held_make, reference)[0]


def plain_of(cls, **settings):
    """A plain version of each matrix."""
    return {(n, i): cls(**settings) for n in MATRICES
            for i in range(len(stack_of(gaussian(*SHAPES[n]))))}


@pytest.mark.parametrize("settings", [
    {}, {"beta2": 0.9, "momentum": 0.5}, {"exponent": 0.5}, {"graft": "sgd"},
    {"graft": "adam"}, {"graft": "adam", "beta2": 0.9, "precondition_frequency": 3},
    {"max_precond_dim": 5}], ids=str)
def test_shampoo_follows_its_plain_version(settings):
    plain = plain_of(PlainShampoo, **settings)
    worst = follows(
        lambda p: Shampoo(p, lr=0.01, weight_decay=0.1, eps=1e-6, **settings),
        lambda n, i, g, entry: plain[n, i].direction(g))
    assert worst < 1e-10


def bases_of(entry, index):
    return [entry[f"{side}_basis"][index].numpy().copy() for side in ("left", "right")]


@pytest.mark.parametrize("frequency", [1, 3, 100])
def test_soap_follows_its_plain_version(frequency):
    plain = plain_of(PlainSOAP, frequency=frequency)
    worst = follows(
        lambda p: SOAP(p, lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), shampoo_beta=0.9,
                       precondition_frequency=frequency),
        lambda n, i, g, entry: plain[n, i].direction(g, bases_of(entry, i)))
    assert worst < 1e-10


@pytest.mark.parametrize(("nesterov", "scale"), [(False, "keller"), (True, "moonlight")])
def test_soap_muon_follows_its_plain_version(nesterov, scale):
    plain = plain_of(PlainSOAP, frequency=3, nesterov=nesterov)

    def direction(n, i, g, entry):
        u = plain[n, i].direction(g, bases_of(entry, i))
        c = max(1, len(g) / g.shape[1]) ** 0.5 if scale == "keller" else 0.2 * max(g.shape) ** 0.5
        return c * references.keller5(u) if u.any() else u

    worst = follows(
        lambda p: SOAPMuon(p, lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), shampoo_beta=0.9,
                           eps=1e-8, precondition_frequency=3, nesterov=nesterov, scale=scale),
        direction)
    assert worst < 1e-10


# --- twenty steps against pytorch_optimizer, which is given each matrix as a 2-D parameter of its
# own: for tensors of higher order it does something else (see the docstrings).


def library_of(make):
    """`direction` of `follows` by an optimizer of the library at learning rate 1."""
    held = {}

    def direction(n, i, g, entry):
        if (n, i) not in held:
            w = nn.Parameter(torch.zeros(g.shape, dtype=DOUBLE))
            held[n, i] = (w, make([w]))
        w, optimizer = held[n, i]
        before = w.detach().clone()
        w.grad = torch.from_numpy(g.copy())
        optimizer.step()
        state = optimizer.state[w]
        if "Q" in state and torch.equal(before, w):
            # The null space again: same bases, or the comparison is one of rounding.
            state["Q"] = [torch.from_numpy(q) for q in bases_of(entry, i)]
        return (before - w.detach()).numpy()

    return direction


def test_equals_shampoo_of_pytorch_optimizer():
    worst = follows(
        lambda p: Shampoo(p, lr=0.01, momentum=0.0, eps=1e-6),
        library_of(lambda p: pytorch_optimizer.Shampoo(p, lr=1.0, matrix_eps=1e-6)), wd=0.0)
    assert worst < 1e-10


@pytest.mark.parametrize(("graft", "graft_type"), [("none", 0), ("sgd", 1), ("adam", 3)])
@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
def test_equals_scalable_shampoo_of_pytorch_optimizer(shape, graft, graft_type, monkeypatch):
    """It has no bias correction and starts from eps I, which its average forgets: with c = 1 -
    beta2^t, our eps beta2^t / c and its lr sqrt(c) make up for that. Its RMSprop is our Adam."""
    monkeypatch.setattr("optimizer.shampoo.GRAFT_EPS", 0.0)
    ours, theirs = (nn.Parameter(torch.zeros(shape, dtype=DOUBLE)) for _ in range(2))
    own = Shampoo([ours], lr=0.01, momentum=0.0, beta2=0.9, graft=graft, weight_decay=0.1)
    library = pytorch_optimizer.ScalableShampoo(
        [theirs], betas=(0.0, 0.9), nesterov=False, graft_type=graft_type, matrix_eps=1e-6,
        diagonal_eps=0.0, start_preconditioning_step=1, preconditioning_compute_steps=1,
        shape_interpretation=False, use_svd=True)
    for t, g in enumerate(gaussian(20, *shape), 1):
        c = 1 - 0.9**t
        own.param_groups[0]["eps"] = 1e-6 * 0.9**t / c
        library.param_groups[0]["lr"] = 0.01 * (1 if graft == "sgd" else c**0.5)
        ours.grad, theirs.grad = torch.from_numpy(g), torch.from_numpy(g.copy())
        theirs.data.mul_(1 - 0.01 * 0.1)
        own.step()
        library.step()
    np.testing.assert_allclose(ours.detach(), theirs.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("frequency", "tolerance"), [(100, 1e-10), (3, 1e-5)])
def test_equals_soap_of_pytorch_optimizer(frequency, tolerance):
    """Without eps, which it adds elsewhere; its bases are refreshed in float32."""
    worst = follows(
        lambda p: SOAP(p, lr=0.01, betas=(0.9, 0.95), shampoo_beta=0.9, eps=0.0,
                       weight_decay=0.0, precondition_frequency=frequency),
        library_of(lambda p: pytorch_optimizer.SOAP(
            p, lr=1.0, betas=(0.9, 0.95), shampoo_beta=0.9, eps=0.0, weight_decay=0.0,
            precondition_frequency=frequency)), wd=0.0)
    assert worst < tolerance
