"""The closure: what it counts, averages, freezes and repeats; and the tasks' evaluations."""

import math
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from data.batches import Batches
from exp.cifar.train import EVAL_BATCH
from exp.harness.build import build, with_smoothing
from exp.harness.classification import evaluate as evaluate_cifar
from exp.harness.clipping import Clipping
from exp.harness.config import load_settings
from exp.harness.errors import ConfigError
from exp.harness.objective import Objective
from exp.harness.task import task_named, tasks
from exp.wikitext2.train import evaluate as evaluate_wikitext2
from exp.wikitext2.train import loss_fn as loss_of_text
from optimizer import build_optimizer


def objective_of(model):
    def loss_fn(model, x, y):
        out = model(x)
        return (out - y).square().mean(), {"size": out.abs().mean()}

    return Objective(model, loss_fn, nullcontext)


def test_batch_norm_statistics_move_on_the_first_call_only():
    model = nn.BatchNorm1d(3)
    plain = nn.BatchNorm1d(3)
    objective = objective_of(model)
    x, y = torch.randn(8, 3), torch.randn(8, 3)
    closure = objective.on((x, y))
    closure()
    plain(x)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    assert all(torch.equal(first[name], value) for name, value in plain.state_dict().items())
    with torch.no_grad():
        model.weight.add_(1)
    loss = closure()
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(model.state_dict()[name], first[name])
    # The second pass still normalizes by the batch, as training does.
    with torch.no_grad():
        plain.weight.add_(1)
    torch.testing.assert_close(loss, (plain(x) - y).square().mean().detach())
    assert model.track_running_stats
    objective.on((x, y))()
    assert int(model.num_batches_tracked) == 2


def test_both_passes_of_a_step_see_the_same_dropout_and_steps_do_not():
    torch.manual_seed(0)
    objective = objective_of(nn.Dropout(0.5))
    model_input = torch.ones(1, 64, requires_grad=True)
    closure = objective.on((model_input, torch.zeros(1, 64)))
    closure()
    first, model_input.grad = model_input.grad, None
    closure()
    second, model_input.grad = model_input.grad, None
    objective.on((model_input, torch.zeros(1, 64)))()
    assert torch.equal(first, second)
    assert not torch.equal(first, model_input.grad)


def test_a_second_pass_does_not_advance_the_random_numbers():
    def draw(passes):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        closure = objective_of(model).on((torch.ones(2, 4), torch.ones(2, 4)))
        for _ in range(passes):
            closure()
        return torch.rand(1)

    assert torch.equal(draw(1), draw(2))


def test_counts_every_evaluation_and_averages_first_losses_by_batch_size():
    objective = objective_of(nn.Identity())
    small = (torch.full((1, 2), 3.0, requires_grad=True), torch.zeros(1, 2))  # loss 9
    large = (torch.full((3, 2), 1.0, requires_grad=True), torch.zeros(3, 2))  # loss 1
    objective.model.zero_grad = lambda set_to_none: None
    objective.on(small)()
    closure = objective.on(large)
    closure()
    with torch.no_grad():
        large[0].mul_(5)
    closure()  # a second pass at other weights must not enter the average
    assert objective.gradient_evaluations == 3
    assert objective.means() == {"train_loss": pytest.approx((9 + 3) / 4),
                                 "train_size": pytest.approx((3 + 3) / 4)}
    objective.reset()
    assert objective.examples == 0


def model_of_two_tracks():
    """A linear layer whose matrix has the gradient (3, 4) and whose bias (0, 2)."""
    model = nn.Linear(1, 2)
    model.roles = lambda: {"weight": "hidden", "bias": "vector"}
    for p in model.parameters():
        nn.init.zeros_(p)
    gradients = {"weight": torch.tensor([[3.0], [4.0]]), "bias": torch.tensor([0.0, 2.0])}

    def closure():
        for name, p in model.named_parameters():
            p.grad = gradients[name] + p.detach()  # of <g, p> + |p|^2 / 2
        return sum((g * p).sum() + p.square().sum() / 2 for p, g in
                   zip(model.parameters(), gradients.values(), strict=True)).detach()

    return model, closure


def test_each_track_is_clipped_by_its_own_norm():
    """The matrix from 5 to 2.5, the bias, whose norm is 2, not at all; and in mid-epoch again."""
    for settings in ({"name": "muon"}, {"name": "torch:SGD", "routing": "role"}):
        model, closure = model_of_two_tracks()
        clipping = Clipping(2.5)
        optimizer = build_optimizer(settings | {"lr": 1e-9}, model, clipping)
        optimizer.step(closure)
        assert model.weight.grad.flatten().tolist() == [1.5, 2.0]
        assert model.bias.grad.tolist() == [0.0, 2.0]
        resumed = Clipping(1.0)
        resumed.load_state_dict(clipping.state_dict(), torch.device("cpu"))
        build_optimizer(settings | {"lr": 1e-9}, model, resumed).step(closure)
        assert model.bias.grad.norm() == pytest.approx(1.0)
        assert resumed.means() == pytest.approx({
            "gradient_norm_matrix": 5.0, "clipped_share_matrix": 1.0,
            "gradient_norm_adamw": 2.0, "clipped_share_adamw": 0.5})


def test_one_track_is_clipped_by_the_norm_of_all():
    model, closure = model_of_two_tracks()
    clipping = Clipping(1.0)
    build_optimizer({"name": "torch:SGD", "lr": 1.0}, model, clipping).step(closure)
    expected = -torch.tensor([3.0, 4.0, 0.0, 2.0]) / 29**0.5
    found = torch.cat([model.weight.flatten(), model.bias]).detach()
    torch.testing.assert_close(found, expected)
    assert clipping.means() == {"gradient_norm": pytest.approx(29**0.5), "clipped_share": 1.0}


@pytest.mark.parametrize("rule", ["sgd", "lars", "lookahead"])
def test_a_perturbation_knows_nothing_of_clipping(rule):
    """SAM's step by hand: the gradient at W + rho g / ||g||, clipped."""
    model, closure = model_of_two_tracks()
    table = {"name": "lars", "momentum": 0.0, "always_adapt": False, "weight_decay": 0.0} \
        if rule == "lars" else {"name": "torch:SGD"}
    wrappers = {"sam": {"rho": 0.5}} | ({"lookahead": {"k": 9}} if rule == "lookahead" else {})
    optimizer = build_optimizer({**table, "lr": 1.0, **wrappers}, model, Clipping(1.0))
    optimizer.step(closure)
    g = torch.tensor([3.0, 4.0, 0.0, 2.0])
    second = g + 0.5 * g / g.norm()
    found = torch.cat([model.weight.flatten(), model.bias]).detach()
    torch.testing.assert_close(found, -second / second.norm())


def test_a_rule_that_takes_both_gradients_itself_is_clipped_at_the_second():
    model, closure = model_of_two_tracks()
    settings = {"name": "ars2_neo", "lr": 1e-9, "rho": 0.5, "perturb_norm": "global",
                "elementwise_scale": "none"}
    build_optimizer(settings, model, Clipping(0.1)).step(closure)
    plain, unclipped = model_of_two_tracks()
    build_optimizer(settings, plain).step(unclipped)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad * 0.1 / q.grad.norm())


@pytest.mark.parametrize("name", ["tr_muon", "lbfgs"])
def test_a_rule_that_compares_gradients_with_losses_is_not_clipped(name):
    with pytest.raises(ValueError, match="compares gradients with losses"):
        build_optimizer({"name": name}, model_of_two_tracks()[0], Clipping(1.0))


def test_micro_batches_give_the_gradient_of_the_batch_in_every_pass():
    """Seven rows, one without targets, in two and in nine micro-batches, with SAM."""
    def trained(pieces):
        torch.manual_seed(0)
        model = nn.Linear(3, 4).double()
        objective = Objective(model, loss_of_text, nullcontext, accumulation=pieces)
        sam = build_optimizer({"name": "torch:SGD", "lr": 1.0, "sam": {"rho": 0.5}}, model)
        x = torch.randn(7, 2, 3).double()
        y = torch.tensor([1, 0, -100, -100, 3, -100, 0, 2, 1, 1, 0, -100, 3, 2]).view(7, 2)
        losses = [float(sam.step(objective.on((x, y)))) for _ in range(3)]
        assert objective.gradient_evaluations == 6 and objective.examples == 21
        return losses, list(model.parameters())

    losses, weights = trained(1)
    for pieces in (2, 9):
        found = trained(pieces)
        assert found[0] == pytest.approx(losses, rel=1e-12)
        torch.testing.assert_close(found[1], weights, rtol=1e-12, atol=1e-12)


def test_micro_batches_see_other_dropout_and_both_passes_the_same():
    torch.manual_seed(0)
    model_input = torch.ones(4, 64, requires_grad=True)
    objective = objective_of(nn.Dropout(0.5))
    objective.accumulation = 2
    closure = objective.on((model_input, torch.zeros(4, 64)))
    found = []
    for _ in range(2):
        closure()
        found.append(model_input.grad)
        model_input.grad = None
    assert torch.equal(*found)
    assert not torch.equal(found[0][:2], found[0][2:])


def test_labels_are_smoothed_where_there_are_classes():
    settings = load_settings(Path("config/lrp_grok_ars2_neo_aga_400e.toml"),
                             [*TINY["grokking"], "experiment.label_smoothing=0.2"],
                             task_named("grokking"))
    built = build(settings, task_named("grokking"))
    x, y = built.data.eval
    logs = built.model(x).log_softmax(-1)
    expected = -0.8 * logs[range(len(y)), y].mean() - 0.2 * logs.mean()
    torch.testing.assert_close(built.objective.loss_fn(built.model, x, y)[0], expected)
    assert built.task.loss_fn is not task_named("grokking").loss_fn
    with pytest.raises(ConfigError, match="label_smoothing must be 0: the loss of task wikitext2"):
        with_smoothing(task_named("wikitext2"), 0.1)


class Fixed(nn.Module):
    """Gives the same logits whatever comes in."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, inputs):
        return self.logits.expand(*inputs.shape[:2] if inputs.ndim == 2 else inputs.shape[:1], -1)


def test_wikitext_perplexities_by_hand():
    probabilities = torch.tensor([0.5, 0.25, 0.25])
    objective = Objective(Fixed(probabilities.log()), None, nullcontext)
    inputs = torch.zeros(3, 2, dtype=torch.long)
    targets = torch.tensor([[0, 1], [-100, -100], [0, -100]])  # real tokens 0, 1, 0
    data = SimpleNamespace(train=Batches((inputs,), 2, 0), eval=(inputs, targets), pad_id=2,
                           eval_bytes=4)
    found = evaluate_wikitext2(objective, data)
    assert found["eval_loss"] == pytest.approx(math.log(2) * 4 / 3)
    assert found["eval_perplexity"] == pytest.approx(2 ** (4 / 3))
    assert found["eval_perplexity_padded"] == pytest.approx(2 ** (10 / 6))
    assert found["eval_bits_per_byte"] == pytest.approx(4 / 4)


def test_cifar_evaluation_counts_every_image_once():
    logits = torch.tensor([2.0, 1.0, 0.0])
    objective = Objective(Fixed(logits), None, nullcontext)
    images, labels = torch.zeros(1203, 3, 2, 2), torch.arange(1203) % 3
    found = evaluate_cifar(objective, images, labels, rows=EVAL_BATCH)
    assert found["eval_accuracy"] == pytest.approx(401 / 1203)
    expected = F.cross_entropy(logits.expand(1203, -1), labels)
    assert found["eval_loss"] == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_kept_for_the_next_step():
    """In a process of its own: the setting is for good."""
    code = ("import resource, numpy as np\n"
            "from exp.harness.device import keep_freed_memory\n"
            "def faults():\n"
            "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
            "    for _ in range(20): np.ones(16_000_000)\n"
            "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
            "faults(); first = faults(); keep_freed_memory(); faults(); print(first, faults())")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    first, then = map(int, found.split())
    assert then < 100 < first


# --- what a GPU would wait for


class Questions(TorchDispatchMode):
    """Notes the operators with which the host asks for a value."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default,
                        torch.ops.aten.nonzero.default):
            self.asked.append(function)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("name", tasks())
def test_passes_ask_for_no_value_and_evaluation_only_in_the_end(name, tiny_data, monkeypatch):
    """With real tensors: libraries spare fake ones the questions that they ask of real ones."""
    task = task_named(name)
    options = [*TINY[name], "experiment.clip_norm=1.0", "experiment.accumulation=2"]
    built = build(load_settings(task.config, options, task), task)
    script = sys.modules[task.evaluate.__module__]
    (batches,) = (value for key, value in vars(script).items() if key.startswith("EVAL_"))
    closure = built.objective.on(next(iter(built.data.train.epoch(0))))
    with Questions() as questions:
        closure()
        closure()
        built.objective.clipping(built.optimizer)
    assert questions.asked == []
    counts = []
    for size in (1, 10**6):
        monkeypatch.setitem(batches, "cpu", size)
        with Questions() as questions:
            task.evaluate(built.objective, built.data)
        counts.append(len(questions.asked))
    assert counts[0] == counts[1]
