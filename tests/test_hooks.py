"""Hooks around a rule's move, averages and gradient filters: hand-computed traces, order, limits.

The traces are ten digits of float64 programs that were written from the formulas alone.
"""

import pytest
import torch
from torch import nn
from traces import DOUBLE, TARGETS, W0, differs, steps

from optimizer import AdaRMSuon, Hyperball, Muon, build_optimizer


def sgd(params, lr=0.1):
    return torch.optim.SGD(params, lr=lr)


def adam(params, betas=(0.9, 0.95), lr=0.1):
    return torch.optim.AdamW(params, lr=lr, betas=betas, eps=1e-8, weight_decay=0)


def fed(make, start=W0, gradients=TARGETS):
    """The weights of three steps whose gradients are given."""
    return steps(make, start, gradients)[0]


def assert_trace(make, first, third, start=W0, gradients=TARGETS):
    weights = fed(make, start, gradients)
    assert differs(weights[0], first) < 1e-10
    assert differs(weights[2], third) < 1e-10
    return weights


# --- hyperball


@pytest.mark.parametrize(("rule", "first", "third"), [
    (sgd, ".9579629827 -1.9159259655 .4789814914 .0308512023 3.1123341407 -.8983516846",
     ".7416370255 -1.9868732308 .3370377283 .0826253614 3.0677729598 -1.1327651890"),
    (adam, ".9122938206 -1.9980378710 .3694217979 .0979857797 3.0837819249 -.9122938194",
     ".5411253473 -1.9175191080 -.0250598349 -.2738708615 3.2170943795 -.9578488077"),
    (lambda p: Muon(p, lr=0.1, orthogonalizer="svd"),
     ".9296982560 -1.8960093399 .4831555420 .0393136922 3.1283487310 -.9120082831",
     ".6277772788 -1.8769520770 .1825669304 -.1509573703 3.1625498651 -1.1565492328"),
], ids=["sgd", "adam", "muon"])
def test_hyperball(rule, first, third):
    weights = assert_trace(lambda p: Hyperball(rule(p)), first, third)
    radius = torch.tensor(W0, dtype=DOUBLE).norm()
    assert all(abs(w.norm() - radius) < 1e-14 for w in weights)


def test_rules_of_one_direction_are_one_rule_on_the_ball():
    literal, frobenius, rms = (fed(lambda p, kind=kind: Hyperball(
        AdaRMSuon(p, lr=0.1, weight_decay=0, energy_norm=kind)))
        for kind in ("literal", "frobenius", "rms"))
    for w, other in ((literal, frobenius), (literal, rms)):
        torch.testing.assert_close(w, other, rtol=1e-12, atol=1e-12)


def test_each_matrix_of_a_stack_has_its_own_ball():
    pairs = list(zip(TARGETS, TARGETS[::-1], strict=True))
    stack = fed(lambda p: Hyperball(sgd(p)), [W0, [row[::-1] for row in W0]], pairs)
    torch.testing.assert_close([w[0] for w in stack], fed(lambda p: Hyperball(sgd(p))),
                               rtol=1e-13, atol=1e-13)


def test_a_matrix_of_zeros_is_refused_by_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    nn.init.zeros_(model[0].weight)
    with pytest.raises(ValueError, match=r"zeros \(0\.weight\)"):
        build_optimizer({"name": "sgd", "lr": 0.1, "hyperball": {}}, model)
    with pytest.raises(ValueError, match=r"of shape \(3, 3\)"):
        Hyperball(sgd(model.parameters()))


def test_a_decay_of_the_rule_itself_is_refused():
    with pytest.raises(ValueError, match=r"Hyperball needs weight_decay = 0.*0\.1"):
        Hyperball(Muon([nn.Parameter(torch.ones(2, 2))], weight_decay=0.1))
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))  # AdamW's own parameters may decay
    build_optimizer({"name": "muon", "adamw": {"weight_decay": 0.1}, "hyperball": {}}, model)


def test_a_rate_of_zero_leaves_the_weights():
    weights = fed(lambda p: Hyperball(sgd(p, lr=0.0)))
    assert torch.equal(weights[-1], torch.tensor(W0, dtype=DOUBLE))


def test_beside_adamw_the_ball_has_the_hidden_matrices_alone():
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    model.roles = lambda: {"0.weight": "embedding", "1.weight": "hidden", "1.bias": "vector",
                           "2.weight": "head", "2.bias": "vector"}
    for settings in ({"name": "adamw", "weight_decay": 0.0, "routing": "role"}, {"name": "muon"}):
        optimizer = build_optimizer({**settings, "hyperball": {}}, model)
        assert [p for group in optimizer.param_groups for p in optimizer.scoped(group)] \
            == [model[1].weight]
