"""One table of invariants over every optimizer there is: a new file is tested as it appears."""

import importlib
import inspect
import logging
from functools import cache, partial
from typing import get_args

import pytest
import torch
from torch import nn
from torch._dynamo import guards
from torch._dynamo.utils import counters

from exp.harness.schema import keywords
from optimizer import (
    GIVEN_BY_CODE,
    available_optimizers,
    build_optimizer,
    is_wrapper,
    optimizer_class,
)
from optimizer.parts.base import set_mode

OWN = [n for n in available_optimizers() if optimizer_class(n).__module__.startswith("optimizer.")]
WRAPPERS = [name for name in OWN if is_wrapper(optimizer_class(name))]
RULES = [name for name in available_optimizers() if name not in WRAPPERS]
DENSE = [name for name in RULES if name != "sparse_adam"]  # needs sparse gradients, by its nature


def sees_the_model(name):
    return "model" in inspect.signature(optimizer_class(name)).parameters


@pytest.fixture(autouse=True)
def what_the_optimizer_requires(request):
    """Skip the rows of a file whose REQUIRES, a package of its own, is not installed."""
    name = request.node.callspec.params.get("name") if hasattr(request.node, "callspec") else None
    if name in OWN:
        module = importlib.import_module(optimizer_class(name).__module__)
        if hasattr(module, "REQUIRES"):
            pytest.importorskip(module.REQUIRES)


class Net(nn.Module):
    """A conv, a stack, matrices wide and tall, a vector, an embedding, a parameter left unused."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.conv = nn.Conv2d(2, 5, (1, 2))
        self.stack = nn.Parameter(torch.randn(2, 4, 3))
        self.tall = nn.Linear(8, 12)
        self.head = nn.Linear(12, 7)
        self.unused = nn.Parameter(torch.ones(3, 3))

    def roles(self):
        hidden = {"conv.weight", "stack", "tall.weight", "unused"}
        known = {"embedding.weight": "embedding", "head.weight": "head"}
        return {name: "hidden" if name in hidden else known.get(name, "vector")
                for name, _ in self.named_parameters()}

    def forward(self, tokens):
        x = self.embedding(tokens).view(-1, 2, 1, 3)
        x = self.mixed(self.conv(x).flatten(1)[:, :6].view(-1, 2, 3))
        x = torch.einsum("shd,bsd->bsh", self.stack, x).flatten(1)
        return self.head(torch.tanh(self.tall(x)))

    def mixed(self, x):
        return x


class Attentive(Net):
    """Net with two heads of attention between its two positions, their logits exposed."""

    def __init__(self):
        super().__init__()
        self.W_Q, self.W_K = (nn.Parameter(torch.randn(2, 2, 3)) for _ in range(2))
        self.max_logits = None

    def attention_layers(self):
        return [self]

    def roles(self):
        return {**super().roles(), "W_Q": "hidden", "W_K": "hidden"}

    def mixed(self, x):
        scores = torch.einsum("hdm,bqm,hdn,bkn->hbqk", self.W_Q, x, self.W_K, x) / 2**0.5
        if self.max_logits is not None:
            self.max_logits = self.max_logits.maximum(scores.detach().amax((1, 2, 3)))
        return x + (scores.softmax(-1) @ x).mean(0)


def settings_of(name, **changes):
    if name in WRAPPERS:
        return {"name": "sgd", "lr": 0.05, "momentum": 0.9, name: changes}
    required = {"lr": 0.05} if name == "sgd" else {}
    return {"name": name, **required, **changes}


def problem(settings, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    looked_at = any(sees_the_model(name) for name in [settings["name"], *settings] if name in OWN)
    model = (Attentive if looked_at else Net)().to(dtype)
    optimizer = build_optimizer(settings, model)

    def closure(synchronize=True):
        optimizer.zero_grad()
        # One process's own gradient is that of its part.
        tokens = closure.tokens if synchronize else closure.tokens[::2]
        logits = model(tokens)
        loss = nn.functional.cross_entropy(logits, (tokens * 3) % 7)
        loss.backward()
        return loss.detach()

    closure.tokens = torch.randint(0, 7, (16,))
    return model, optimizer, closure


def run(settings, steps, **kwargs):
    model, optimizer, closure = problem(settings, **kwargs)
    losses = [float(optimizer.step(closure)) for _ in range(steps)]
    return model, optimizer, closure, losses


def trajectory(name, changes, steps=8):
    """Weights to evaluate after steps on a new batch each, as training has them."""
    model, optimizer, closure = problem(settings_of(name, **changes))
    for _ in range(steps):
        closure.tokens = torch.randint(0, 7, (5,))
        optimizer.step(closure)
    set_mode(optimizer, "eval")
    return weights(model)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", DENSE + WRAPPERS)
def test_loss_falls_and_the_first_loss_is_returned(name):
    model, _, closure = problem(settings_of(name))
    before = float(closure())
    *_, losses = run(settings_of(name), 60)
    assert losses[0] == pytest.approx(before, abs=1e-12)
    assert losses[-1] < losses[0] - 1e-3


@pytest.mark.parametrize("name", DENSE + WRAPPERS)
def test_same_seed_is_bitwise_equal(name):
    a, b = run(settings_of(name), 5)[0], run(settings_of(name), 5)[0]
    assert torch.equal(weights(a), weights(b))


@pytest.mark.parametrize(
    ("name", "dtype"),
    # torch's own round their state on loading in bfloat16 (NAdam's mu_product): theirs to mend.
    [(n, torch.float32) for n in DENSE + WRAPPERS] + [(n, torch.bfloat16) for n in OWN])
def test_state_dict_round_trip_is_bitwise_equal(name, dtype, tmp_path):
    model, optimizer, closure, _ = run(settings_of(name), 3, dtype=dtype)
    other, fresh, fresh_closure = problem(settings_of(name), dtype=dtype)
    torch.save({"m": model.state_dict(), "o": optimizer.state_dict()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(saved["m"])
    fresh.load_state_dict(saved["o"])
    for _ in range(4):
        optimizer.step(closure)
        fresh.step(fresh_closure)
    assert torch.equal(weights(model), weights(other))
    assert all(p.dtype == dtype for p in model.parameters())


@pytest.mark.parametrize("name", DENSE + WRAPPERS)
def test_a_parameter_without_gradient_stays(name):
    model = run(settings_of(name), 3)[0]
    assert torch.equal(model.unused, torch.ones(3, 3, dtype=torch.float64))


@pytest.mark.parametrize("name", DENSE + WRAPPERS)
def test_without_any_gradient_nothing_moves(name):
    model, optimizer, _ = problem(settings_of(name))
    before = weights(model)

    def closure(synchronize=True):
        optimizer.zero_grad()
        return torch.tensor(1.0)

    for _ in range(2):
        optimizer.step(closure)
    assert torch.equal(weights(model), before)


@pytest.mark.parametrize("name", OWN)
def test_step_hooks_run_once_a_step(name):
    problem(settings_of("ada_rmsuon"))  # torch hooks the step of a class with its first instance
    _, optimizer, closure = problem(settings_of(name))
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.step(closure)
    assert calls == ["before", "after"]


class Affine(nn.Module):
    """A layer, and a vector of its own: x W^T + b."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 4, bias=False, dtype=torch.float64)
        self.b = nn.Parameter(torch.randn(4, dtype=torch.float64))

    def forward(self, x):
        return self.layer(x) + self.b


def over(name, params, model, **settings):
    """The rule over bare parameters; one that looks at the model is given it."""
    given = {"model": model} if sees_the_model(name) else {}
    return optimizer_class(name)(params, **given, **settings)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize("name", [n for n in OWN if n not in WRAPPERS])
def test_zero_gradient_only_shrinks_by_the_decay(name, weight_decay):
    model = Affine()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = over(name, model.parameters(), model, lr=0.1, weight_decay=weight_decay)

    def closure():
        optimizer.zero_grad()
        (0 * model(torch.ones(1, 3, dtype=torch.float64))).sum().backward()
        return torch.tensor(0.0)

    for _ in range(2):
        optimizer.step(closure)
    # By how much is the rule's own: the traces with decay, against plain versions, pin it down.
    for p, start in zip(model.parameters(), before, strict=True):
        kept = float((p / start).flatten()[0].detach())
        torch.testing.assert_close(p.detach(), kept * start)
        assert kept == 1 if weight_decay == 0 else 0 < kept <= 1
    assert (weight_decay > 0) == (not torch.equal(model.layer.weight, before[1]))


@pytest.mark.parametrize("name", [n for n in OWN if n not in WRAPPERS])
def test_the_memory_format_of_a_convolution_does_not_matter(name):
    def final(memory_format):
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 4, 2, bias=False, dtype=torch.float64).to(memory_format=memory_format)
        optimizer = over(name, layer.parameters(), layer, lr=0.01)
        for x, slope, g in zip(torch.randn(12, 5, 3, 4, 4, dtype=torch.float64),
                               torch.randn(12, 5, 4, 3, 3, dtype=torch.float64),
                               torch.randn(12, 4, 3, 2, 2, dtype=torch.float64), strict=True):
            def closure(x=x, slope=slope, g=g):
                (slope * layer(x)).sum().backward()  # what a rule that looks at the model sees
                layer.weight.grad = g.to(memory_format=memory_format)  # equal to the bit
                return torch.tensor(0.0)

            optimizer.step(closure)
        return layer.weight.detach()

    expected = final(torch.contiguous_format)
    torch.testing.assert_close(final(torch.channels_last), expected, rtol=1e-9, atol=1e-12)


def candidates(parameter):
    """Other values an argument may take, read off its annotation and default."""
    default = parameter.default
    literals = [value for value in get_args(parameter.annotation) if isinstance(value, str)]
    if literals:
        return [value for value in literals if value != default]
    if isinstance(default, bool):
        return [not default]
    if isinstance(default, int):
        # 1 first: an interval matters within a few steps only if it is short.
        return [1] * (default > 1) + [default + 2, default + 1, 0, max(1, default // 3)]
    if isinstance(default, tuple):
        return [(*default[:i], value * 0.5, *default[i + 1:]) for i, value in enumerate(default)]
    return [default * 0.5, default + 0.05, 0.3, default + 20, 0.0]


@pytest.mark.parametrize("name", OWN)
def test_every_constructor_argument_has_an_effect(name):
    """Some arguments matter only in a mode: each must matter in one that others switch on."""
    accepted = keywords(optimizer_class(name), GIVEN_BY_CODE)
    modes = [{}]
    for key, parameter in accepted.items():
        if isinstance(parameter.default, bool | int):
            modes += [{**mode, key: value} for mode in list(modes)
                      for value in candidates(parameter)[:1] if len(mode) < 2]
    modes += [{**mode, key: candidates(parameter)[-1]} for key, parameter in accepted.items()
              if isinstance(parameter.default, str) for mode in modes if len(mode) < 2]
    modes += [{key: 0.0 if parameter.default else 0.3} for key, parameter in accepted.items()
              if isinstance(parameter.default, float)]  # decay on or off, say

    @cache  # many modes are tried for more than one argument
    def final(*settings):
        return trajectory(name, dict(settings))

    unaffected = []
    for key, parameter in accepted.items():
        moved = False
        # What belongs together begins alike: adaptive_sync, rho_schedule, beta1_range, beta_rule.
        nearest = sorted(modes, key=lambda mode, key=key: bool(mode) and not any(
            other[:4] == key[:4] for other in mode))
        for mode in ({k: v for k, v in m.items() if k != key} for m in nearest):
            try:
                reference = final(*sorted(mode.items()))
            except ValueError:
                continue  # a combination that the class refuses
            for value in candidates(parameter):
                try:
                    moved = not torch.equal(reference, final(*sorted({**mode, key: value}.items())))
                except ValueError:
                    continue  # the class refuses this value, as it should say it does
                if moved:
                    break
            if moved:
                break
        if not moved:
            unaffected.append(key)
    assert not unaffected


BAD = {float: [-1.0, float("nan")], int: [-1], str: ["nonsense"]}


@pytest.mark.parametrize("name", OWN)
def test_bad_values_raise_and_name_the_argument(name):
    for key, parameter in keywords(optimizer_class(name), GIVEN_BY_CODE).items():
        default = parameter.default
        wrong = BAD.get(type(default), [])
        if isinstance(default, tuple):  # two betas or three, or a range
            wrong = [(*default[:-1], 1.0)] * ("beta" in key) + [(-0.1, *default[1:])]
        for value in wrong:
            with pytest.raises(ValueError, match=key):
                problem(settings_of(name, **{key: value}))


@pytest.mark.parametrize("name", OWN)
def test_unknown_keywords_are_refused(name):
    with pytest.raises(TypeError, match="nonsense"):
        problem(settings_of(name, nonsense=1))


@pytest.mark.parametrize("name", OWN)
def test_the_file_documents_itself_and_its_declared_cost_is_measured(name):
    cls = optimizer_class(name)
    module = importlib.import_module(cls.__module__)
    assert module.__doc__
    assert cls.__doc__
    assert "Cost:" in cls.__doc__
    assert module.__all__ == [cls.__name__]
    accepted = keywords(cls, GIVEN_BY_CODE)
    for key in module.SEARCH_SPACE:
        assert key in accepted or key.startswith("adamw.")
    model, optimizer, closure = problem(settings_of(name))
    calls = 0

    def counted():
        nonlocal calls
        calls += 1
        return closure()

    for _ in range(20):
        optimizer.step(counted)
    assert calls == round(20 * module.COST["gradient_evaluations"])
    if name not in WRAPPERS:
        tensors = [v for v in optimizer.state[model.tall.weight].values()
                   if torch.is_tensor(v) and v.numel() > 1]
        assert len(tensors) == module.COST["state_tensors"]


@pytest.mark.parametrize("name", [n for n in OWN if n not in WRAPPERS])
def test_any_form_of_parameters_gives_the_same_steps(name):
    def final(make):
        model = Affine()
        x, target = torch.randn(5, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
        optimizer = over(name, make(model.layer.weight, model.b), model, lr=0.01)

        def closure():
            optimizer.zero_grad()
            loss = ((model(x) - target) ** 2).sum()
            loss.backward()
            return loss.detach()

        for _ in range(4):
            optimizer.step(closure)
        return weights(model)

    bare = final(lambda w, b: [w, b])
    assert torch.equal(bare, final(lambda w, b: [("w", w), ("b", b)]))
    assert torch.equal(bare, final(lambda w, b: [{"params": [w]}, {"params": b}]))
    assert torch.equal(bare, final(lambda w, b: [{"params": [w], "track": "matrix"},
                                                 {"params": [b], "track": "adamw"}]))


def test_groups_are_checked():
    w, b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    muon = optimizer_class("muon")
    for groups, word in (
        ([{"params": [w], "beta": 1}], "beta"),
        ([{"params": [b], "track": "matrix"}], "not a matrix"),
        ([{"params": [w], "track": "spam"}], "spam"),
        ([{"params": [w]}, {"params": [w], "track": "adamw"}], "more than one"),
    ):
        with pytest.raises(ValueError, match=word):
            muon(groups)
    for groups, word in (([{"params": {w, b}}], "order of a set"), ([w, "b"], "tensors, got str")):
        with pytest.raises(TypeError, match=word):
            muon(groups)
    for cls in (muon, optimizer_class("ars2_neo")):
        assert len(cls([{"params": []}, {"params": [w, b]}]).param_groups) == 3


@pytest.mark.parametrize("name", [n for n in OWN if n not in WRAPPERS])
def test_values_of_a_group_are_checked_as_arguments_are(name):
    model = Affine()
    w = next(p for p in model.parameters() if p.ndim == 2)
    for key, value, word in (("lr", -1.0, "lr"), ("weight_decay", float("nan"), "weight_decay"),
                             ("wd", 0.1, "unknown key 'wd'")):
        with pytest.raises(ValueError, match=word):
            over(name, [{"params": [w], "track": "matrix", key: value}], model)


@pytest.mark.parametrize(("name", "key", "value"), [
    ("muon", "scale", "kellerr"), ("muon", "momentum", 5.0), ("muon", "ns_steps", 0),
    ("error_feedback", "compressor", "sgn"), ("lion", "betas", (2.0, 0.9))])
def test_each_kind_of_value_of_a_group_is_checked(name, key, value):
    with pytest.raises(ValueError, match=key):
        optimizer_class(name)([{"params": [nn.Parameter(torch.ones(2, 2))], key: value}])


@pytest.mark.parametrize("name", [n for n in OWN if n not in WRAPPERS])
def test_sparse_gradients_and_complex_parameters_are_refused(name):
    table = nn.Embedding(4, 3, sparse=True)
    table(torch.tensor([1])).sum().backward()
    w = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    w.grad = torch.ones_like(w)
    for p, word in ((table.weight, "sparse"), (w, "complex")):
        with pytest.raises(ValueError, match=word):
            over(name, [p], Affine()).step(lambda: torch.tensor(0.0))


@pytest.mark.parametrize("routing", ["role", "shape", "all"])
def test_routing_puts_each_parameter_in_exactly_one_group(routing):
    model, optimizer, _ = problem({"name": "ARS2-Neo", "routing": routing,
                                   "adamw": {"lr": 0.5, "betas": [0.8, 0.9]}})
    routed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(routed) == sorted(id(p) for p in model.parameters())
    matrix, rest = optimizer.param_groups
    assert (matrix["track"], rest["track"], rest["lr"], matrix["lr"]) == (
        "matrix", "adamw", 0.5, 1e-3)
    hidden = {id(p) for p in matrix["params"]}
    assert (id(model.embedding.weight) in hidden) == (routing != "role")
    assert (id(model.head.weight) in hidden) == (routing != "role")
    assert id(model.conv.weight) in hidden
    assert id(model.tall.bias) not in hidden


def test_shape_routing_leaves_long_tensors_to_adamw():
    model = nn.Linear(10_000, 2, bias=False)
    groups = build_optimizer({"name": "muon", "routing": "shape"}, model).param_groups
    assert [group["track"] for group in groups] == ["adamw"]


def test_names_are_found_however_written():
    assert optimizer_class("ARS2-Neo") is optimizer_class("ars2_neo")
    assert optimizer_class("AdamW") is torch.optim.AdamW
    assert optimizer_class("torch:RAdam") is torch.optim.RAdam
    assert optimizer_class("pytorch_optimizer:Lion").__module__.startswith("pytorch_optimizer")
    for bad in ("adamx", "os:path", "../evil:X", "torch:Nothing", "not_there:Adam"):
        with pytest.raises(ValueError, match="optimizer|package"):
            optimizer_class(bad)


def test_any_class_can_be_the_matrix_rule_beside_adamw():
    settings = {"name": "torch:Muon", "lr": 0.02, "routing": "role", "adamw": {"lr": 0.01}}
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model.roles = lambda: {"0.weight": "hidden", "0.bias": "vector",
                           "1.weight": "head", "1.bias": "vector"}
    optimizer = build_optimizer(settings, model)
    x = torch.randn(8, 4)

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - x).pow(2).mean()
        loss.backward()
        return loss.detach()

    losses = [float(optimizer.step(closure)) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    optimizer.step(closure)
    assert inspect.isclass(type(optimizer))
    assert len(optimizer.state) == 4


BESIDE_ADAMW = {"name": "lion", "routing": "role", "adamw": {"lr": 0.01}}


def test_such_a_pair_resumes_to_the_bit():
    """With float32 moments of bfloat16 parameters."""
    model, optimizer, closure, _ = run(BESIDE_ADAMW, 3, dtype=torch.bfloat16)
    other, fresh, fresh_closure = problem(BESIDE_ADAMW, dtype=torch.bfloat16)
    other.load_state_dict(model.state_dict())
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.state[other.stack]["exp_avg"].dtype == torch.float32
    for _ in range(4):
        optimizer.step(closure)
        fresh.step(fresh_closure)
    assert torch.equal(weights(model), weights(other))


def test_such_a_pair_takes_no_further_group():
    _, optimizer, _ = problem(BESIDE_ADAMW)
    with pytest.raises(ValueError, match="part"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert len(optimizer.param_groups) == 2


@pytest.mark.parametrize(("shape", "rule"), [((3, 3), "lion"), ((10_000, 2), "adamw")])
def test_either_side_of_such_a_pair_may_be_empty(shape, rule):
    model = nn.Linear(*shape, bias=False)
    optimizer = build_optimizer({"name": "lion", "routing": "shape"}, model)
    assert [type(part) for part in optimizer.parts] == [optimizer_class(rule)]
    before = weights(model)
    model(torch.ones(1, shape[0])).sum().backward()
    optimizer.step()
    assert not torch.equal(weights(model), before)


@pytest.fixture
def quick_compiler(monkeypatch):
    """Dynamo times the guards of every graph after a flush of the cache, and describes every graph
    to whoever listens, as pytest does: a third of its time."""
    monkeypatch.setattr(guards, "profile_guard_manager", lambda *_: 0.0, raising=False)
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "handlers", [])


def compiled_and_not(name, changes, compiled):
    """Weights and diagnostics after ten steps on a falling lr, and how many graphs there were
    after each step."""
    torch._dynamo.reset()
    counters.clear()
    model, optimizer, closure = problem(settings_of(name, **changes))
    step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
    closure = torch.compiler.disable(closure)  # the model is compiled on its own or not at all
    graphs = []
    for number in range(10):
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * (1 - number / 12)
        step(closure)
        graphs.append(counters["stats"]["unique_graphs"])
    return weights(model), getattr(optimizer, "diagnostics", {}), graphs


@pytest.mark.parametrize("name", OWN)
def test_a_compiled_step_is_the_step(name, quick_compiler):
    changes = {"k": 3} if name in ("ars", "ars2_neo", "looksam", "lookahead") else {}
    expected, said, _ = compiled_and_not(name, changes, compiled=False)
    found, says, graphs = compiled_and_not(name, changes, compiled=True)
    assert (found - expected).abs().max() < 1e-9
    assert says == pytest.approx(said, rel=1e-6)
    seen = 6 if changes else 3  # every kind of step twice, after the first
    assert graphs[-1] == graphs[seen], "a graph for every step"


@pytest.mark.parametrize("name", [name for name in OWN if name not in WRAPPERS])
def test_lr_may_be_a_tensor(name):
    runs = []
    for kind in (float, partial(torch.tensor, dtype=torch.float64)):
        model, optimizer, closure = problem(settings_of(name))
        for group in optimizer.param_groups:
            group["lr"] = kind(group["lr"])
        for _ in range(3):
            optimizer.step(closure)
        runs.append(weights(model))
    assert torch.equal(*runs)
