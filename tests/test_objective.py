"""The closure: what it counts, averages, freezes and repeats; and the tasks' evaluations."""

import math
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from data.batches import Batches
from exp.cifar.train import EVAL_BATCH
from exp.harness.build import build
from exp.harness.classification import evaluate as evaluate_cifar
from exp.harness.config import load_settings
from exp.harness.objective import Objective
from exp.harness.task import task_named, tasks
from exp.wikitext2.train import evaluate as evaluate_wikitext2


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
    found = evaluate_cifar(objective, images, labels, EVAL_BATCH)
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
    built = build(load_settings(task.config, TINY[name], task), task)
    script = sys.modules[task.evaluate.__module__]
    (batches,) = (value for key, value in vars(script).items() if key.startswith("EVAL_"))
    closure = built.objective.on(next(iter(built.data.train.epoch(0))))
    with Questions() as questions:
        closure()
        closure()
    assert questions.asked == []
    counts = []
    for size in (1, 10**6):
        monkeypatch.setitem(batches, "cpu", size)
        with Questions() as questions:
            task.evaluate(built.objective, built.data)
        counts.append(len(questions.asked))
    assert counts[0] == counts[1]
