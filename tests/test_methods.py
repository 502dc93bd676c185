"""Rules of 2025 and 2026: traces of their authors' code, or of float64 numpy, to ten digits."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from traces import TARGETS, VECTOR, VECTORS, W0, differs, steps

from optimizer import MARS, Hyperball, build_optimizer, optimizer_class
from optimizer.celo2 import SHAPES, Celo2
from optimizer.dion2 import Dion2
from optimizer.dyn_muon import DynMuon, power_at, powered
from optimizer.error_feedback import ErrorFeedback, compressed
from optimizer.kl_soap import KLSOAP
from optimizer.muon import Muon
from optimizer.muown import Muown
from optimizer.newton_muon import NewtonMuon, damped_inverse
from optimizer.parts import polar as polar_module
from optimizer.parts.joint import Joint
from optimizer.sophia_h import SophiaH, random_signs

A1, A2, A3 = TARGETS
TALL = {"start": [list(row) for row in zip(*W0, strict=True)],
        "fed": [[list(row) for row in zip(*a, strict=True)] for a in TARGETS]}


@pytest.fixture
def floored(monkeypatch):
    """Newton-Schulz as released, which adds 1e-7 to the norm."""
    monkeypatch.setattr(polar_module, "newton_schulz",
                        partial(polar_module.newton_schulz, floor=1e-7))


def check(make, traces, fed=TARGETS, start=W0):
    weights, optimizer = steps(make, start, fed, max(traces))
    for step, trace in traces.items():
        assert differs(weights[step - 1], trace) < 1e-10, step
    return optimizer


# --- KL-SOAP and KL-Shampoo


KL = {"lr": 0.1, "betas": (0.95, 0.9), "shampoo_beta": 0.9, "precondition_frequency": 1,
      "weight_decay": 0.0}


@pytest.mark.parametrize(("second_moment", "traces"), [
    (True, {2: "1.0117506707 -2.0165335964 .4778965667 .2585584183 3.0227005547 -1.0033820396",
            4: ".9939440347 -2.0375425730 .4362111569 .2627113590 3.0268508740 -1.0452450715"}),
    # The specification has ...8657 for ...8730 (fourth step, fifth entry); numpy below has this.
    (False, {2: "1.0124999988 -2.0249999975 .4500000050 .2250000025 3.0499999950 -1.0124999988",
             4: ".9929942561 -2.0285956670 .4353373947 .2193238121 3.0558328730 -1.0336402780"})])
def test_kl_soap_follows_its_traces(second_moment, traces):
    check(partial(KLSOAP, second_moment=second_moment, **KL), traces, [A1, A2, A3, A1])


def test_kl_soap_on_the_ball_follows_its_trace():
    check(lambda p: Hyperball(KLSOAP(p, **KL)), {
        4: ".7781864319 -2.0559776812 -.1645038282 .2751990578 2.9433999880 -1.3090004321"},
        [A1, A2, A3, A1])


def plain_kl(gradients, w, soap, b1=0.95, b2=0.9, sb=0.9, eps=1e-8, frequency=2, lr=0.1, wd=0.2):
    """KL-SOAP of one matrix in numpy, the lines of arXiv 2509.03378's code."""
    m, n = w.shape
    first, *rest = gradients
    s_a, s_b = (1 - sb) * first @ first.T / n, (1 - sb) * first.T @ first / m
    q_a, q_b = (np.linalg.eigh(s)[1][:, ::-1] for s in (s_a, s_b))
    r_a, r_b = np.full(m, 0.1**-0.5), np.full(n, 0.1**-0.5)
    momentum, v = np.zeros((m, n)), np.zeros((m, n))
    for t, g in enumerate(rest, 1):
        y = q_a.T @ g @ q_b
        momentum = b1 * momentum + (1 - b1) * g
        if soap:
            v = b2 * v + (1 - b2) * y**2
            u = q_a.T @ momentum @ q_b / (np.sqrt(v) + eps)
        else:
            s = np.outer(r_a, r_b)
            u = q_a.T @ momentum @ q_b * s / (1 + eps * s)
        w = (1 - lr * wd) * (w - lr * q_a @ u @ q_b.T)
        white_a, white_b = q_a * r_a @ q_a.T, q_b * r_b @ q_b.T
        s_a = sb * s_a + (1 - sb) * g @ white_b @ white_b @ g.T / n
        s_b = sb * s_b + (1 - sb) * g.T @ white_a @ white_a @ g / m
        d_a, d_b = ((y * r_b) ** 2).mean(1), ((r_a[:, None] * y) ** 2).mean(0)
        r_a = np.minimum((sb * r_a**-2 + (1 - sb) * d_a) ** -0.5, max(10, m))
        r_b = np.minimum((sb * r_b**-2 + (1 - sb) * d_b) ** -0.5, max(10, n))
        if t % frequency == 0:
            q_a, q_b = np.linalg.qr(s_a @ q_a)[0], np.linalg.qr(s_b @ q_b)[0]
    return w


@pytest.mark.parametrize("soap", [True, False])
def test_kl_soap_of_a_stack_is_its_plain_version_of_each_matrix(soap):
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(2, 3, 4)), rng.normal(size=(6, 2, 3, 4))
    weights, _ = steps(partial(KLSOAP, **{**KL, "precondition_frequency": 2, "weight_decay": 0.2},
                               second_moment=soap), start.tolist(), gradients.tolist(), 6)
    for index in range(2):
        expected = plain_kl(gradients[:, index], start[index], soap)
        np.testing.assert_allclose(weights[-1][index], expected, rtol=1e-10)


def test_a_row_without_gradient_is_bounded_and_a_long_side_is_left_alone():
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(400, 3, 4))
    gradients[1:, 0] = 0
    optimizer = steps(partial(KLSOAP, second_moment=False), [[1.0] * 4] * 3, gradients.tolist(),
                      400)[1]
    (state,) = optimizer.state.values()
    assert torch.isfinite(state["left_root"]).all() and state["left_root"].max() == 10
    optimizer = steps(partial(KLSOAP, max_precond_dim=3), [[1.0] * 4] * 3, gradients.tolist(), 3)[1]
    (state,) = optimizer.state.values()
    assert "left" in state and "right" not in state


# --- Muown


MUOWN = partial(Muown, lr=0.1, orthogonalizer="svd")


@pytest.mark.parametrize(("settings", "traces"), [
    ({}, {1: "1.0449216475 -2.0951486867 .4865678638 .2222613464 3.0969673836 -1.0326285826",
          3: ".9882663827 -2.1145829465 .4569162623 .2036921855 3.1431687046 -1.0719282400"}),
    ({"weight_decay": 0.1},
     {1: "1.0349216475 -2.0751486867 .4815678638 .2197613464 3.0669673836 -1.0226285826",
      3: ".9586261859 -2.0523007134 .4425842944 .1971813244 3.0516511166 -1.0410499465"}),
    ({"nesterov": False},
     {3: ".9841356081 -2.1151658695 .4630944245 .2121292762 3.1362738634 -1.0902569450"})])
def test_muown_follows_its_traces(settings, traces):
    check(partial(MUOWN, **settings), traces, [A2, A3, A1])


def test_muown_reads_its_gains_off_the_weights_and_keeps_their_sign():
    w = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64))
    optimizer = Muown([w], lr=0.1)
    w.grad = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    optimizer.step()
    state = optimizer.state[w]
    assert torch.isfinite(w).all() and float(state["gain"][0, 0, 0]) == pytest.approx(4.9)
    state["gain"][0, 0] *= -1
    row = w.detach()[0].clone()
    with torch.no_grad():
        w.mul_(2)  # a projection, say
    w.grad = torch.zeros(2, 2, dtype=torch.float64)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    torch.testing.assert_close(w.detach()[0], 2 * row)
    assert float(state["gain"][0, 0, 0]) == pytest.approx(-9.8)


# --- equilibration of Muon


EQ = {"weight_decay": 0.1, "scale": "moonlight"}


@pytest.mark.parametrize(("settings", "traces", "data"), [
    ({"equilibrate": "row", **EQ},
     {1: ".9732181149 -1.9503827471 .4885823161 .2206976058 2.9589176567 -.9710576313",
      3: ".9184009662 -1.9129291681 .4419590649 .1924214847 2.9106675792 -.9837692672"}, {}),
    ({"equilibrate": "row", "orthogonalizer": "keller", **EQ},
     {1: ".9711660861 -1.9484577168 .4886458153 .2181764899 2.9589374290 -.9698069595"}, {}),
    ({"equilibrate": "rowcol", **EQ},
     {1: ".9724425876 -1.9512130860 .4870595432 .2231743495 2.9615552630 -.9668278368",
      3: ".9178200206 -1.9160684631 .4419344999 .1977350126 2.9026074603 -.9716700129"}, {}),
    ({"equilibrate": "aurora", "weight_decay": 0.025},
     {1: ".9445600963 -1.9137758251 .4742551026 .1845879134 2.9724342729 -.9240153077",
      3: ".8381499733 -1.9182751807 .3693580096 .1239181440 2.9583619944 -.9895851831"}, {}),
    ({"equilibrate": "aurora_tall", "weight_decay": 0.025},
     {1: ".9326621244 .1700273479 -1.8955211083 2.9679246036 .4687500000 -.9075000000",
      3: ".8034563860 .0960022375 -1.9032706988 2.9540481944 .3408375803 -.9889258825"}, TALL),
    ({"equilibrate": "aurora_tall", "weight_decay": 0.025},  # wide: Muon
     {1: ".9486753793 -1.9096605421 .4804925814 .1722420645 2.9600884240 -.9427277442"}, {})])
def test_equilibrated_muon_follows_its_traces(settings, traces, data, floored):
    check(partial(Muon, **{"lr": 0.1, "orthogonalizer": "svd", **settings}), traces, **data)


def test_aurora_brings_the_rows_of_a_tall_matrix_together():
    lengths = {}
    for how in ("none", "aurora"):
        make = partial(Muon, lr=1.0, scale="moonlight", orthogonalizer="svd", equilibrate=how)
        (w,), _ = steps(make, count=1, start=[[0.0, 0.0]] * 3, fed=TALL["fed"])
        lengths[how] = torch.linalg.vector_norm(w, dim=1) / (0.2 * 3**0.5)
    assert differs(lengths["none"], ".9128709292 .9128709292 .5773502692") < 1e-9
    assert differs(lengths["aurora"], ".83666 .83666 .77460") < 1e-5


def test_columns_are_the_rows_of_the_transpose():
    settings = {"lr": 0.1, "orthogonalizer": "svd", "scale": "moonlight"}
    (*_, wide), _ = steps(partial(Muon, equilibrate="col", **settings), W0, TARGETS)
    (*_, tall), _ = steps(partial(Muon, equilibrate="row", **settings), **TALL)
    torch.testing.assert_close(wide, tall.T, rtol=1e-12, atol=0)


# --- compression with error feedback


FEED = partial(ErrorFeedback, lr=0.1)


@pytest.mark.parametrize(("settings", "traces", "error"), [
    ({}, {1: ".9416666667 -1.9416666667 2.9416666667", 3: ".9361111111 -1.9361111111 2.9472222222"},
     ".0611111111 .0388888889 .0222222222"),
    ({"compressor": "topk"}, {1: "1 -1.9 3", 3: ".875 -1.9 2.875"}, "0 .075 -.05"),
    ({"compressor": "none"}, {1: ".95 -1.9 2.975", 3: ".875 -1.975 2.925"}, "0 0 0")])
def test_compressed_sgd_follows_its_traces_and_loses_nothing(settings, traces, error):
    optimizer = check(partial(FEED, **settings), traces, VECTORS, VECTOR)
    ((w, state),) = optimizer.state.items()
    assert differs(state["error"], error) < 1e-10
    whole = torch.tensor(VECTOR) - 0.1 * torch.tensor(VECTORS).double().sum(0)
    torch.testing.assert_close(w.detach() - state["error"], whole, rtol=1e-12, atol=1e-12)


def test_of_equal_entries_the_first_are_sent():
    sent = compressed(torch.tensor([[1.0, -2], [2, 2]]), "topk", 0.5)
    assert torch.equal(sent, torch.tensor([[0.0, -2], [2, 0]]))


# --- DynMuon


def test_powers_of_singular_values_by_hand():
    x = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))[None]
    length = 5**0.5
    for power, exact in ((-0.25, ".8408964153 1"), (0.25, "1.1892071150 1")):
        found = powered(x, power, "svd") * length**power
        assert differs(found[0].diagonal(), exact) < 1e-10
    floored = length + 1e-7  # as in the record
    error = torch.eye(2, dtype=torch.float64) - x[0] @ x[0] / floored**2
    for power, fast in ((-0.25, ".8405095347 .9363414149"), (0.25, "1.1895984594 1.0577605386")):
        d = power / 2  # what "taylor" does to an exact msign
        row = (1 - d * error + d * (d - 1) / 2 * error @ error).diagonal()
        assert differs(row * floored**power, fast) < 1e-10
        (polar,) = polar_module.orthogonalize([x])
        assert torch.allclose(powered(x, power, "taylor")[0].diagonal(),
                              row * polar[0].diagonal(), rtol=1e-7)
    small = torch.diag(torch.tensor([1.0, 0.01], dtype=torch.float64))[None]
    assert float(powered(small, -0.25, "svd")[0, 1, 1]) == pytest.approx(3.1623, rel=1e-3)


def test_the_power_falls_from_its_start_to_its_end_and_the_first_is_muon_at_zero():
    group = {"total_steps": 100, "power_start": 0.25, "power_end": -0.25, "center": 0.04,
             "width": 0.04}
    powers = power_at(torch.tensor([0.0, 4.0, 100.0], dtype=torch.float64), group)
    assert powers.tolist() == pytest.approx([0.1155293, 0.0, -0.25], abs=1e-7)
    settings = {"lr": 0.1, "weight_decay": 0.025}
    ours = steps(partial(DynMuon, power_start=0.0, power_end=0.0, method="svd", **settings))[0]
    muon = steps(partial(Muon, orthogonalizer="svd", **settings))[0]
    torch.testing.assert_close(ours, muon, rtol=1e-12, atol=0)


def test_the_power_one_is_the_normalized_momentum_also_of_a_tall_stack():
    x = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[1] = 0
    torch.testing.assert_close(powered(x, 1.0, "svd")[0], x[0] / x[0].norm())
    for method in ("svd", "taylor"):
        assert not powered(x, -0.25, method)[1].any()
    near = torch.linalg.qr(x[:1]).Q  # singular values of one size: both methods agree
    torch.testing.assert_close(powered(near, 0.1, "taylor"),
                               powered(near, 0.1, "svd"), rtol=0.3, atol=0.1)


# --- Dion2


def test_dion2_follows_its_trace():
    check(partial(Dion2, lr=0.1, fraction=0.5, orthogonalizer="svd"),
          {1: ".999 -1.998 .4995 .1891021565 2.9666760783 -.9535141174",
           3: ".9279964431 -1.9802046868 .4570975659 .1152612961 2.9873443091 -.9281759283"})


def test_dion2_of_a_tall_matrix_chooses_columns_and_of_all_rows_is_muon_without_average():
    (w, *_), _ = steps(partial(Dion2, lr=0.1, fraction=0.5, weight_decay=0.0), **TALL)
    moved = (w != torch.tensor(TALL["start"])).any(0)
    assert moved.tolist() == [False, True]
    whole = steps(partial(Dion2, lr=0.1, fraction=1.0, orthogonalizer="svd", ef_decay=0.0,
                          weight_decay=0.0), count=1)[0]
    muon = steps(partial(Muon, lr=0.1 * (2 / 3) ** 0.5, orthogonalizer="svd"), count=1)[0]
    torch.testing.assert_close(whole, muon)


# --- Sophia-H


@pytest.mark.parametrize(("settings", "expected"), [
    ({"gamma": 0.01, "k": 2, "weight_decay": 0.1},
     {1: ".89 -1.88 2.87", 3: ".673289 -1.643588 2.613887"}),
    ({"gamma": 20, "k": 1, "weight_decay": 0.0},
     {1: ".98 -1.96 2.94", 3: ".9414937081 -1.8829874161 2.8244811242"})])
def test_sophia_h_follows_its_traces(settings, expected):
    """A difference of gradients of a quadratic is its curvature, up to rounding."""
    w = nn.Parameter(torch.tensor(VECTOR, dtype=torch.float64))
    h = torch.tensor([1, 4, 0.25], dtype=torch.float64)
    optimizer, evaluations = SophiaH([w], lr=0.1, **settings), []

    def closure():
        evaluations.append(1)
        optimizer.zero_grad()
        loss = (h * w**2).sum() / 2
        loss.backward()
        return loss

    for step in range(1, 4):
        optimizer.step(closure)
        if step in expected:
            assert differs(w.detach(), expected[step]) < 1e-9
    assert len(evaluations) == 3 + len(range(0, 3, settings["k"]))


def test_sophia_h_beside_adamw_moves_its_own_matrices_only():
    """Its probe is that of a model whose other weights are constants; AdamW has the gradient at the
    weights before the probe, also where the closure clears gradients in place."""
    def model_of(trained):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()
        model.roles = lambda: {"0.weight": "hidden", "2.weight": "head", "0.bias": "vector",
                               "2.bias": "vector"}
        for name, p in model.named_parameters():
            p.requires_grad_(name in trained)
        return model

    def step(model, optimizer, calls):
        def closure():
            calls.append(1)
            for p in model.parameters():
                if p.grad is not None:
                    p.grad.zero_()
            loss = model(torch.eye(3, dtype=torch.float64)).square().sum()
            loss.backward()
            return loss.detach()

        return optimizer.step(closure)

    both = model_of(("0.weight", "0.bias", "2.weight", "2.bias"))
    matrix, rest = model_of(["0.weight"]), model_of(("0.bias", "2.weight", "2.bias"))
    settings = {"lr": 0.1, "k": 2, "weight_decay": 0.0}
    parts = [build_optimizer({"name": "sophia_h", "routing": "role", **settings}, both),
             SophiaH([matrix[0].weight], **settings),
             torch.optim.AdamW([p for p in rest.parameters() if p.requires_grad], 0.1,
                               weight_decay=0.0)]
    for number in range(2):
        counts = [[], [], []]
        losses = [step(model, optimizer, calls) for model, optimizer, calls
                  in zip((both, matrix, rest), parts, counts, strict=True)]
        assert losses[0] == losses[1] == losses[2]
        assert [len(calls) for calls in counts] == [2 - number % 2, 2 - number % 2, 1]
        torch.testing.assert_close(both[0].weight, matrix[0].weight)
        torch.testing.assert_close(both[2].weight, rest[2].weight)
        with torch.no_grad():  # one point for all three
            for name, p in both.named_parameters():
                matrix.get_parameter(name).copy_(p)
                rest.get_parameter(name).copy_(p)
    with pytest.raises(ValueError, match="SophiaH needs a second gradient"):
        parts[0].step()
    with pytest.raises(ValueError, match="one optimizer with a second gradient, got SophiaH and S"):
        Joint(parts[1], SophiaH([rest[0].bias]))


def test_sophia_h_leaves_weights_of_zero():
    w = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = SophiaH([w], lr=0.1)

    def closure():
        w.grad = w.detach() - 1
        return w.detach().sum()

    optimizer.step(closure)
    assert (w > 0).all() and optimizer.state[w]["hessian"].tolist() == pytest.approx([0.01] * 3)


def test_the_probes_of_sophia_are_random_signs_of_the_step():
    a, b, c = (random_signs(torch.zeros(1000), seed) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(a.abs(), torch.ones(1000))
    assert abs(float(a.mean())) < 0.1 and abs(float((a * c).mean())) < 0.1


# --- Newton-Muon


def newton_muon(model, **settings):
    return NewtonMuon(model.parameters(), model,
                      **{"lr": 0.1, "orthogonalizer": "svd", "refresh_interval": 1, **settings})


def fed_layer(model, optimizer, rows, gradient):
    """One step with these inputs and this gradient of the weight."""
    optimizer.zero_grad()
    model(torch.tensor(rows, dtype=torch.float64)).sum().backward()
    model.weight.grad = torch.tensor(gradient, dtype=torch.float64)
    optimizer.step()


def test_newton_muon_follows_its_trace():
    model = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(W0))
    optimizer = newton_muon(model)
    fed_layer(model, optimizer, [[1, 2, 0], [0, 1, -1], [2, 0, 1], [1, 1, 1]], A1)
    state = optimizer.state[model.weight]
    gamma = 0.2 * float(state["covariance"].trace()) / 3 + 1e-8
    assert gamma == pytest.approx(0.0126900100, abs=1e-12)
    assert differs(model.weight.detach(), ".9538613404 -1.9066345843 .4818024133 .1967839351 "
                                          "2.9827328339 -.9130086847") < 1e-10
    model.eval()  # K and P stay
    for gradient in (A2, A3):
        fed_layer(model, optimizer, [[5, 5, 5]], gradient)
    assert differs(model.weight.detach(), ".8595139111 -1.8548399291 .3752581605 .1224514926 "
                                          "3.0141003691 -1.0001355554") < 1e-10


def test_newton_muon_is_muon_until_its_first_refresh_and_keeps_the_rows_until_then():
    torch.manual_seed(0)
    models = [nn.Linear(3, 2, dtype=torch.float64) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours = newton_muon(models[0], refresh_interval=3)
    muon = Muon(models[1].parameters(), lr=0.1, weight_decay=0.025, orthogonalizer="svd")
    for step, same in enumerate((True, True, False)):
        for model, optimizer in zip(models, (ours, muon), strict=True):
            fed_layer(model, optimizer, [[1, 2, step], [0, 1, -1]], TARGETS[step])
        assert torch.equal(models[0].weight, models[1].weight) is same
        assert torch.equal(models[0].bias, models[1].bias)  # AdamW's
        assert ours.state[models[0].weight]["rows"] == (2 * (step + 1) if same else 0)


def test_an_input_that_is_not_finite_leaves_the_gradient_alone():
    bad = torch.full((2, 2), torch.nan, dtype=torch.float64)
    assert torch.equal(damped_inverse(-torch.eye(2), 0.2), torch.eye(2))
    assert torch.equal(damped_inverse(bad, 0.2), torch.eye(2, dtype=torch.float64))


# --- by name: what the installed library computes


@pytest.mark.parametrize(("name", "settings", "traces", "data"), [
    ("AdEMAMix", {"alpha": 2.0}, {1: ".8999800020 -1.8999800010 2.8999800040",
                                  3: ".8074847078 -1.8671872053 2.7778754530"}, {}),
    ("ScheduleFreeAdamW", {"betas": (0.9, 0.999), "weight_decay": 0.0},
     {1: ".9000000020 -1.9000000010 2.9000000040",
      3: ".8838215029 -1.9594025165 2.8342169863"}, {}),
    # Clips at t^(1/4), the authors' code one step later.
    ("ADOPT", {}, {1: "1 -2 3", 3: ".9963392599 -2.0120000938 2.9905658049"}, {}),
    ("SCION", {"scale": 2.0, "constraint": True, "norm_type": 4},
     {1: ".8333333333 -1.7333333333 .3833333333 .1583333333 2.6333333333 -.8333333333",
      3: ".5483333333 -1.2773333333 .1838333333 .0015833333 2.1263333333 -.6816666667"},
     {"fed": TARGETS, "start": W0})])
def test_rules_by_name_follow_their_traces(name, settings, traces, data):
    check(partial(optimizer_class(f"pytorch_optimizer:{name}"), lr=0.1, **settings), traces,
          **{"fed": VECTORS, "start": VECTOR, **data})


def test_the_warm_up_of_ademamix_follows_its_trace():
    """To 1e-7: the authors add 1e-8 to the betas in the schedule of beta3, the library does not."""
    settings = {"alpha": 5.0, "weight_decay": 0.1, "weight_decouple": True, "t_alpha_beta3": 10}
    make = partial(optimizer_class("pytorch_optimizer:AdEMAMix"), lr=0.1, **settings)
    weights, _ = steps(make, VECTOR, VECTORS)
    assert differs(weights[0], ".8899504525 -1.8799504515 2.8699504545") < 1e-7
    assert differs(weights[2], ".7798096260 -1.8097910084 2.6914426688") < 1e-7


def test_mars_by_name_is_the_filter_around_adamw():
    """Without eps, which the library does not divide by the bias correction."""
    settings = {"lr": 0.1, "betas": (0.95, 0.99), "eps": 0.0, "weight_decay": 0.0}
    library, ours = (steps(make)[0] for make in (
        partial(optimizer_class("pytorch_optimizer:MARS"), **settings),
        lambda p: MARS(torch.optim.AdamW(p, **settings))))
    torch.testing.assert_close(library, ours, rtol=1e-10, atol=0)


@pytest.mark.parametrize(("name", "third", "distances"), [
    ("Prodigy", ".8486064920 -1.8487133576 2.8487528458", [0.01, 0.015689344348, 0.047495313592]),
    ("DAdaptAdam", ".6191773770 -1.6134802042 2.6116423038",
     [0.01, 0.156893443485, 0.413519223349])])
def test_rules_that_find_their_rate_follow_their_traces(name, third, distances):
    """On the gradient w; the library keeps d in float32."""
    found = []
    w = nn.Parameter(torch.tensor(VECTOR, dtype=torch.float64))
    optimizer = optimizer_class(f"pytorch_optimizer:{name}")([w], lr=1.0, d0=0.01)
    for _ in range(3):
        w.grad = w.detach().clone()
        optimizer.step()
        found.append(float(optimizer.param_groups[0]["d"]))
        if len(found) == 1:
            assert differs(w.detach(), ".9683772334 -1.9683772284 2.9683772267") < 1e-7
    assert differs(w.detach(), third) < 1e-7
    assert found == pytest.approx(distances, rel=1e-6)


# --- Celo2


def celo2(params, **settings):
    """With the weights of the traces."""
    optimizer = Celo2(params, lr=0.01, weight_decay=0.1, **settings)
    counts = torch.arange(1.0, 31, dtype=torch.float64)
    layers = [(0.1 * torch.sin(counts[:o, None] + 3 * counts[:i] - 3), 0.01 * counts[:o])
              for o, i in SHAPES[::2]]
    optimizer.network = torch.cat([part.flatten() for layer in layers for part in layer])
    return optimizer


CELO2 = {1: ".9948928684 -2.0147160845 .5013995134 .2411722751 3.0008349401 -1.0135124879",
         3: ".9712765083 -2.0028262918 .4762533476 .2371393023 2.9617159589 -1.0124779535"}


def test_celo2_follows_its_traces_a_tall_matrix_and_a_stack_too(floored):
    check(celo2, CELO2)
    weights, _ = steps(celo2, **TALL)
    assert differs(weights[2].T, CELO2[3]) < 1e-10
    stacks = [[W0, [[7 * x for x in row] for row in W0]],
              [[a, [[0.1 - x for x in row] for row in a]] for a in TARGETS]]
    weights, _ = steps(celo2, *stacks)
    assert differs(weights[2][0], CELO2[3]) < 1e-10  # whatever its neighbour does


def test_celo2_starts_as_muon_without_nesterov_at_rms_lr():
    fed = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0)).tolist()
    ours, muons = (torch.stack([torch.tensor(W0, dtype=torch.float64), *steps(make, fed=fed)[0]])
                   for make in (partial(Celo2, lr=0.01, weights="start"),
                                partial(Muon, lr=0.01, momentum=0.9, nesterov=False)))
    for own, other in zip(ours.diff(dim=0), muons.diff(dim=0), strict=True):
        torch.testing.assert_close(own / own.norm(), other / other.norm(), rtol=1e-8, atol=1e-9)
        assert own.square().mean().sqrt() == pytest.approx(0.01, rel=1e-6)
