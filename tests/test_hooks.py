"""Hooks around a rule's move, averages and gradient filters: hand-computed traces, order, limits.

The traces are ten digits of float64 programs that were written from the formulas alone.
"""

import copy

import pytest
import torch
from torch import nn
from traces import DOUBLE, TARGETS, VECTOR, VECTORS, W0, differs, steps

from exp.harness.clipping import Clipping
from optimizer import (
    EMA,
    LAWA,
    MARS,
    SAM,
    SWA,
    AdaRMSuon,
    CautiousDecay,
    CautiousUpdate,
    DiLoCo,
    EMANesterov,
    GrokFast,
    Hyperball,
    Hypergradient,
    Lookahead,
    Muon,
    RadialBrake,
    ScheduleFree,
    UpdateFloor,
    build_optimizer,
)
from optimizer.parts.base import evaluated_weights


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
    stack = nn.Parameter(torch.ones(2, 3, 3))
    optimizer = Hyperball(sgd([nn.Parameter(torch.ones(2, 2))]))
    optimizer.add_param_group({"params": [stack]})
    nn.init.zeros_(stack[1])
    with pytest.raises(ValueError, match=r"of shape \(2, 3, 3\)"):
        Hyperball(sgd([stack]))
    with pytest.raises(ValueError, match=r"of shape \(3, 3\)"):
        optimizer.add_param_group({"params": [model[0].weight]})


def test_a_decay_of_the_rule_itself_is_refused():
    with pytest.raises(ValueError, match=r"Hyperball needs weight_decay = 0.*0\.1"):
        Hyperball(Muon([nn.Parameter(torch.ones(2, 2))], weight_decay=0.1))
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))  # AdamW's own parameters may decay
    adamw = {"lr": 1e-3, "weight_decay": 0.1}
    build_optimizer({"name": "muon", "adamw": adamw, "hyperball": {}}, model)


def test_a_rate_of_zero_leaves_the_weights():
    weights = fed(lambda p: Hyperball(sgd(p, lr=0.0)))
    assert torch.equal(weights[-1], torch.tensor(W0, dtype=DOUBLE))


def test_beside_adamw_the_ball_has_the_hidden_matrices_alone():
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    model.roles = lambda: {"0.weight": "embedding", "1.weight": "hidden", "1.bias": "vector",
                           "2.weight": "head", "2.bias": "vector"}
    for settings in ({"name": "adamw", "weight_decay": 0.0, "routing": "role"}, {"name": "muon"}):
        with pytest.raises(ValueError, match=r"Hyperball's lr \(an angle\) is not a learning rate"):
            build_optimizer({**settings, "hyperball": {}}, model)
        optimizer = build_optimizer({**settings, "adamw": {"lr": 1e-3}, "hyperball": {}}, model)
        assert [p for group in optimizer.param_groups for p in optimizer.scoped(group)] \
            == [model[1].weight]


# --- masks, lengths, decay

HALVES = [[[x / 2 for x in row] for row in target] for target in TARGETS]
NEGATIVE = [[[-x for x in row] for row in target] for target in TARGETS]
TRACES = {
    "relative": (lambda p: UpdateFloor(sgd(p), tau=1.0, bound="fixed"), W0, TARGETS,
        ".8893202819 -1.7786405638 .4446601409 .0286405638 2.8893202819 -.8339804228",
        ".7262087529 -1.9455403137 .3300263336 .0809065063 3.0039540893 -1.1092002786"),
    "floor": (lambda p: UpdateFloor(sgd(p)), W0, HALVES,
        ".9612620987 -1.9225241973 .4806310493 .1725241973 2.9612620987 -.9418931480",
        ".9046980087 -1.9829955363 .4368437131 .1892082001 3.0050494349 -1.0396397415"),
    "row floor": (lambda p: UpdateFloor(sgd(p), tau=0.3825, part="row"), W0, HALVES,
        ".96175 -1.9235 .480875 .1598749791 2.9549374895 -.9324062343",
        ".9057166588 -1.9788936400 .4445145300 .1764156593 3.0129704243 -1.0494180501"),
    "brake": (lambda p: RadialBrake(sgd(p)), W0, TARGETS,
        ".9495322431 -1.8990644861 .4747661215 .1499261436 2.9485474916 -.9245445524",
        ".8604265004 -1.9456147358 .4177878935 .1726893533 2.9544336662 -1.0355999534"),
    "brake, outward": (lambda p: RadialBrake(sgd(p)), W0, NEGATIVE,
        "1.0328055206 -2.0656110411 .5164027603 .3456624441 2.9984610600 -1.0577943960",
        "1.1050492245 -1.9853304622 .5648315584 .3196981491 2.9407789259 -.9301785475"),
    "brake by the norm": (lambda p: RadialBrake(sgd(p), kind="norm"), W0, TARGETS,
        ".95 -1.9 .475 .15 2.95 -.925",
        ".8620837960 -1.9491675920 .4200322292 .1736752611 2.9595954644 -1.0374149807"),
    "brake by the norm, outward": (lambda p: RadialBrake(sgd(p), kind="norm"), W0, NEGATIVE,
        "1.0327788368 -2.0655576736 .5163894184 .3442596123 2.9999766211 -1.0573688091",
        "1.1060475141 -1.9874466756 .5655042211 .3187606486 2.9453661688 -.9309116308"),
    "decay": (lambda p: CautiousDecay(sgd(p), 0.5, scope="all"), VECTOR, VECTORS,
        ".9 -1.8 2.825", ".77875 -1.875 2.63375"),
    "decay of adam": (lambda p: CautiousDecay(adam(p, (0.9, 0.999)), 0.5, scope="all"), VECTOR,
        VECTORS, ".8500000020 -1.8000000010 2.7500000040",
        ".6760118246 -1.5930590963 2.3642492981"),
    "cautious": (lambda p: CautiousUpdate(adam(p, (0.9, 0.999)), scope="all"), VECTOR, VECTORS,
        ".9000000020 -1.9000000010 2.9000000040", ".7025665249 -1.9000000010 2.6346870605"),
    "cautious by the count": (
        lambda p: CautiousUpdate(adam(p, (0.9, 0.999)), "count", scope="all"), VECTOR, VECTORS,
        ".9250000015 -1.9250000007 2.9250000030", ".8262832630 -1.9250000007 2.7923435312"),
}


@pytest.mark.parametrize("case", TRACES)
def test_hooks_of_the_move(case):
    make, start, gradients, first, third = TRACES[case]
    assert_trace(make, first, third, start, gradients)


def test_a_decay_around_the_ball_has_the_mask_of_the_direction_before_it():
    """Every entry of u agrees with W, and the first of W minus where the ball has put it does not.
    """
    w, u = [[1.0, 1.0], [1.0, 2.0]], [[0.5, 1.0], [1.0, 2.0]]
    ball, decayed = (fed(make, w, [u] * 3)[0] for make in (
        lambda p: Hyperball(sgd(p)), lambda p: CautiousDecay(Hyperball(sgd(p)), 0.5)))
    w = torch.tensor(w, dtype=DOUBLE)
    assert ((w - ball) * w)[0, 0] < 0
    torch.testing.assert_close(decayed, ball - 0.1 * 0.5 * w, rtol=0, atol=1e-15)
    # Before the ball, the outer one of two that pin, the brake has turned the first entry of u.
    both, decayed = (fed(make, w.tolist(), [u] * 3)[0] for make in (
        lambda p: Hyperball(RadialBrake(sgd(p), inward=0.0)),
        lambda p: CautiousDecay(Hyperball(RadialBrake(sgd(p), inward=0.0)), 0.5)))
    mask = torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=DOUBLE)
    torch.testing.assert_close(decayed, both - 0.1 * 0.5 * mask * w, rtol=0, atol=1e-15)


def test_a_rule_that_overwrites_its_gradient_cannot_be_masked():
    def overwriting(params):
        optimizer = sgd(params)
        optimizer.register_step_post_hook(lambda *_: [p.grad.mul_(2) for p in params])
        return optimizer

    with pytest.raises(ValueError, match="SGD frees or overwrites"):
        fed(lambda p: CautiousUpdate(overwriting(p)))


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_a_masked_rule_takes_clipped_gradients(rule):
    """Clipping changes no sign; the bound has no effect on the scale-invariant step 1."""
    weights = []
    for clipping in (None, Clipping(0.1)):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = build_optimizer({"name": rule, "weight_decay": 0.0, "cautious_update": {}},
                                    model, clipping)
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
        weights.append(model.weight.detach())
    assert clipping.means() and all(value > 0 for value in clipping.means().values())
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("make", [CautiousUpdate, Hypergradient, SAM])
def test_wrappers_that_use_the_sign_of_a_gradient_refuse_to_maximize(make):
    with pytest.raises(ValueError, match="maximize"):
        make(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1, maximize=True))


# --- along the path: EMA-Nesterov, outer momentum


def downhill(make, count, h=1.0):
    """The weights after each of `count` steps on h ||w||^2 / 2 from VECTOR, and the optimizer."""
    w = nn.Parameter(torch.tensor(VECTOR, dtype=DOUBLE))
    optimizer, weights = make([w]), []

    def closure():
        w.grad = h * w.detach()
        return w.detach().sum()

    for _ in range(count):
        optimizer.step(closure)
        weights.append(w.detach().clone())
    return weights, optimizer


def test_ema_nesterov():
    weights, _ = downhill(lambda p: EMANesterov(sgd(p), 0.5, 0.9, prefill=0), 3)
    assert differs(weights[0], ".9 -1.8 2.7") < 1e-15
    assert differs(weights[2], ".7166475 -1.4332950 2.1499425") < 1e-15
    rested, _ = downhill(lambda p: EMANesterov(sgd(p), 0.5, 0.9, prefill=0, rest=1), 3)
    torch.testing.assert_close(rested, downhill(sgd, 3)[0], rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"step\(closure\)"):
        EMANesterov(sgd([nn.Parameter(torch.ones(1))])).step()


def test_an_exception_in_the_closure_leaves_the_weights_before_the_step():
    (*_, w), optimizer = downhill(lambda p: EMANesterov(sgd(p), 0.5, 0.9, prefill=0), 3)
    (p,) = optimizer.param_groups[0]["params"]

    def interrupted():
        assert not torch.equal(p, w)  # extrapolated
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(interrupted)
    assert torch.equal(p, w)


@pytest.mark.parametrize("cls", [Lookahead, DiLoCo])
def test_outer_momentum(cls):
    weights, _ = downhill(lambda p: cls(sgd(p), k=2, alpha=0.7, outer_momentum=0.5), 6)
    assert differs(weights[1], ".8005 -1.601 2.4015") < 1e-10
    assert differs(weights[5], ".4431023501 -.8862047002 1.3293070504") < 1e-10


# --- gradient filters, and a rate that adapts


@pytest.mark.parametrize(("make", "first", "third"), [
    (lambda p: MARS(adam(p, (0.95, 0.99)), scope="all"),
     ".9000000023 -1.9000000011 2.9000000046", ".8307123184 -1.8798750517 2.7937819194"),
    (lambda p: GrokFast(sgd(p)), ".85 -1.7 2.925", ".57894 -1.39188 2.77206"),
    (lambda p: Hypergradient(sgd(p), 0.01, "additive"), ".95 -1.9 2.975",
     ".8840625 -1.970625 2.92375"),
    (lambda p: Hypergradient(adam(p, (0.9, 0.999)), 1e-3, "additive"), None,
     ".8074835771 -1.8671603626 2.7777287796"),
    (lambda p: Hypergradient(sgd(p), 0.1), ".95 -1.9 2.975",
     ".8817687075 -1.9717006803 2.9241156463"),
], ids=["mars", "grokfast", "hypergradient", "of adam", "multiplicative"])
def test_filters_and_hypergradient(make, first, third):
    weights = fed(make, VECTOR, VECTORS)
    assert first is None or differs(weights[0], first) < 1e-10
    assert differs(weights[2], third) < 1e-10


def test_a_hypergradient_leaves_the_rate_to_the_schedule():
    _, optimizer = steps(lambda p: Hypergradient(sgd(p), 0.1), VECTOR, VECTORS)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.diagnostics["factor_0"] == pytest.approx(0.92517006803, abs=1e-10)


def test_a_rate_of_zero_grows_again():
    """Step 2 opposes step 1 and makes the rate 0; step 3 opposes it too, step 4 does not."""
    gradients = [[1.0], [-1.0], [-1.0], [1.0]]
    weights, optimizer = steps(lambda p: Hypergradient(sgd(p), 1.0, "additive"), [1.0], gradients,
                               4)
    assert [float(w) for w in weights] == pytest.approx([0.9, 0.9, 0.9, -0.1])
    with pytest.raises(ValueError, match=r"beta must be < 1.*1\.0"):
        Hypergradient(sgd([nn.Parameter(torch.ones(1))]), 1.0)
    optimizer.add_param_group({"params": []})
    optimizer.step(lambda: torch.tensor(0.0))


@pytest.mark.parametrize("rule", ["sgd", "ars2_neo"])
def test_filters_work_at_the_rule_the_last_one_first(rule):
    """Also around SAM and rules with two gradients: it is the final one that they filter."""
    seen = []
    model = nn.Linear(3, 2)
    nn.init.ones_(model.weight)
    nn.init.ones_(model.bias)
    settings = {"name": rule, "lr": 0.1, "sam": {}} if rule == "sgd" else {"name": rule, "k": 1}
    optimizer = build_optimizer({**settings, "mars": {"scope": "all"}, "grokfast": {"lamb": 1.0}},
                                model, lambda _: seen.append(model.weight.grad.clone()))

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(3)).square().sum()
        loss.backward()
        finals.append(model.weight.grad.clone())
        return loss.detach()

    finals = []
    for _ in range(2):
        optimizer.step(closure)
    assert len(finals) == 4 and len(seen) == 2
    first, second = finals[1], finals[3]
    last = torch.zeros(2, 3)  # GrokFast first, then MARS corrects and clips
    for found, g in zip(seen, (2 * first, 1.02 * second + 0.98 * first), strict=True):
        c, last = g + 0.025 * 0.95 / 0.05 * (g - last), g
        torch.testing.assert_close(found, c / c.norm().clamp_min(1))


def test_a_rule_that_compares_gradients_with_losses_takes_no_filter():
    with pytest.raises(ValueError, match="TRMuon compares gradients with losses"):
        build_optimizer({"name": "tr_muon", "grokfast": {}}, nn.Linear(2, 2))


# --- averages for evaluation


def evaluated(optimizer, p):
    """The weights in eval mode; afterwards those of training are back to the bit."""
    before = p.detach().clone()
    optimizer.eval()
    weights = p.detach().clone()
    optimizer.train()
    assert torch.equal(p, before)
    return weights


@pytest.mark.parametrize(("make", "expected"), [
    (lambda p: EMA(sgd(p), horizon=3, start=1), ".7084077778 -1.4168155556 2.1252233333"),
    (lambda p: EMA(sgd(p), horizon=3, start=1, share=0.6),
     ".6612406667 -1.3224813333 1.9837220000"),
    (lambda p: SWA(sgd(p), every=1), ".737118 -1.474236 2.211354"),
    (lambda p: LAWA(sgd(p), k=3, every=1), ".65853 -1.31706 1.97559"),
], ids=["ema", "tail ema", "swa", "lawa"])
def test_averages(make, expected):
    weights, optimizer = downhill(make, 5)
    torch.testing.assert_close(weights, downhill(sgd, 5)[0], rtol=0, atol=0)  # SGD's trajectory
    assert evaluated_weights(optimizer) == type(optimizer).__name__
    p = optimizer.param_groups[0]["params"][0]
    assert differs(evaluated(optimizer, p), expected) < 1e-10
    optimizer.eval()
    with pytest.raises(ValueError, match=r"call train\(\) before step"):
        optimizer.step()


def test_an_average_is_not_perturbed():
    _, optimizer = downhill(lambda p: EMA(SAM(sgd(p))), 2)
    optimizer.eval()
    before = optimizer.parameters[0].detach().clone()
    with pytest.raises(ValueError, match=r"call train\(\) before step"):
        optimizer.first_step()
    assert torch.equal(optimizer.parameters[0], before)


def test_before_an_average_begins_the_weights_themselves_are_evaluated():
    for make in (lambda p: EMA(sgd(p), start=4), lambda p: SWA(sgd(p), start=4),
                 lambda p: LAWA(sgd(p), every=4)):
        weights, optimizer = downhill(make, 3)
        p = optimizer.param_groups[0]["params"][0]
        assert evaluated_weights(optimizer) is None
        assert torch.equal(evaluated(optimizer, p), weights[-1])


def test_a_first_snapshot_is_evaluated_as_an_average():
    weights, optimizer = downhill(lambda p: SWA(sgd(p), every=2), 3)
    assert evaluated_weights(optimizer) == "SWA"  # so batch-norm statistics are recomputed
    assert torch.equal(evaluated(optimizer, optimizer.parameters[0]), weights[1])


ADAM_FREE = {"betas": (0.0, 0.999)}


@pytest.mark.parametrize(("make", "first", "third", "average"), [
    (lambda p: ScheduleFree(sgd(p)), ".95 -1.9 2.975", ".9275 -1.945 2.925",
     ".9333333333 -1.9416666667 2.925"),
    (lambda p: ScheduleFree(adam(p, **ADAM_FREE)), ".9000000020 -1.9000000010 2.9000000040",
     ".8838215029 -1.9594025165 2.8342169863", ".8917891732 -1.9547733511 2.8337501062"),
    (lambda p: ScheduleFree(adam(p, **ADAM_FREE), weight_decay=0.1), None,
     ".8639119218 -1.9186247154 2.7730118972", ".8727895222 -1.9158918502 2.7753541986"),
], ids=["sgd", "adamw", "decay"])
def test_schedule_free(make, first, third, average):
    weights, optimizer = steps(make, VECTOR, VECTORS)
    assert first is None or differs(weights[0], first) < 1e-10
    assert differs(weights[2], third) < 1e-10
    assert differs(evaluated(optimizer, optimizer.param_groups[0]["params"][0]), average) < 1e-10


def test_two_kinds_of_evaluated_weights_are_refused():
    for tables in ({"ema": {}, "swa": {}}, {"schedule_free": {}, "ema": {}}):
        with pytest.raises(ValueError, match="both choose the weights"):
            build_optimizer({"name": "sgd", "lr": 0.1, **tables}, nn.Linear(2, 2))


def test_a_state_in_eval_mode_continues_to_the_bit():
    def built():
        model = nn.Linear(3, 2)
        nn.init.ones_(model.weight)
        nn.init.zeros_(model.bias)
        return model, build_optimizer({"name": "muon", "ema": {"horizon": 2.0}}, model)

    def step(model, optimizer, number):
        optimizer.zero_grad()
        model(torch.arange(3.0) + number).square().sum().backward()
        optimizer.step()

    model, optimizer = built()
    for number in range(3):
        step(model, optimizer, number)
    optimizer.eval()
    twin, fresh = built()
    twin.load_state_dict(copy.deepcopy(model.state_dict()))
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for other, of_other in ((model, optimizer), (twin, fresh)):
        of_other.train()
        step(other, of_other, 4)
        of_other.eval()
    assert torch.equal(model.weight, twin.weight)
    lost = fresh.state_dict()  # as torch's flattened checkpoints do
    lost["state"] = {index: {key: value for key, value in entry.items() if key != "trained_weight"}
                     for index, entry in lost["state"].items()}
    with pytest.raises(ValueError, match=r"lacks the trained weights: call train\(\)"):
        built()[1].load_state_dict(lost)


# --- several around one rule


def test_wrappers_that_would_share_a_state_tensor_are_refused():
    model = nn.Linear(3, 2)
    for settings, word in (
            ({"name": "adamw", "lookahead": {"k": 5}, "diloco": {"k": 50}}, "outer_velocity"),
            ({"name": "ars2_neo", "k": 2, "looksam": {}}, "LookSAM and ARS2Neo.*shear_force"),
            ({"name": "sgd", "lr": 0.1, "mars": {}, "grokfast": {}, "MARS": {}},
             "MARS and MARS.*last_gradient")):
        with pytest.raises(ValueError, match=word):
            build_optimizer(settings, model)
    build_optimizer({"name": "ars2_neo", "k": 0, "looksam": {}}, model)


def test_the_order_of_hooks_is_checked():
    model = nn.Linear(3, 2)
    sound = {"cautious_update": {}, "update_floor": {}, "sam": {}, "hyperball": {},
             "cautious_decay": {}, "ema_nesterov": {}}
    muon = {"name": "muon", "adamw": {"lr": 0.02}}
    build_optimizer({**muon, **sound}, model)
    wrong = {**muon, "hyperball": {}, "cautious_update": {}}
    with pytest.raises(ValueError, match=r"CautiousUpdate \(update mask\) must be inside Hyp"):
        build_optimizer(wrong, model)
