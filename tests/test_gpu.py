"""What a GPU would refuse or wait for, found without one: fake tensors have a device but no values.

A tensor left on the host stops a fake step as it stops a real one, and so does a host that asks
for a value, which on a real GPU only costs time. Autograd needs the real device, autocast too.
"""

import traceback

import pytest
import torch
from conftest import TINY
from test_optimizers import OWN, WRAPPERS, Attentive, Net, sees_the_model
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import exp.cifar.train as cifar
import exp.grokking.train as grokking
import exp.ladder.train as ladder
import exp.wikitext2.train as wikitext2
from data.cifar10 import _statistics, augment
from exp.harness.classification import loss_and_correct
from exp.harness.task import tasks
from exp.harness.toml import apply_override
from model import build_model
from optimizer import ars2_neo, build_optimizer, hyperball
from optimizer.parts import curvature, three_paths

GPU = torch.device("cuda", 0)
# What cannot be shown: a rule, and why.
BEYOND = {
    "kfac": "its hooks wait for a backward pass",
    "newton_muon": "its hooks wait for a backward pass",
    "low_rank_muon": "draws with a generator of the device",
    "sophia_h": "draws with a generator of the device",
    "adamw_8bit": "has its library's kernels",
}
# Who asks for a value, and in which function.
ASKS = {"soap": "eigh", "kl_soap": "eigh", "shampoo": "eigh", "soap_muon": "eigh",
        "tr_muon": "_step", "hyperball": "are_nonzero", "hypergradient": "adapt"}
ALL = {name: {"name": name} for name in OWN}
ALL |= {name: {"name": "adamw", "weight_decay": 0.0, name: {}} for name in WRAPPERS}
SETTINGS = {name: table for name, table in ALL.items() if name not in {*BEYOND, *ASKS}}
for mode, changes in {"base": {"k": 0, "rho": 0.0}, "sync": {"k": 1}, "lazy": {"k": 2},
                      "lazy, bf16": {"k": 2, "shear_storage": "bf16"},
                      "lazy, 8 bits": {"k": 2, "shear_storage": "8bit"},
                      "curvature": {"beta_rule": "element", "rho_rule": "curvature"}}.items():
    SETTINGS[f"ars2_neo {mode}"] = {"name": "ars2_neo", "adaptive_sync": False, **changes}
for kind in ("rowcol", "aurora"):
    SETTINGS[f"muon {kind}"] = {"name": "muon", "equilibrate": kind}
SETTINGS["outer momentum"] = {"name": "muon", "lookahead": {"k": 2, "outer_momentum": 0.5}}


@pytest.fixture(autouse=True)
def fake():
    """Every tensor made within is a fake one."""
    with FakeTensorMode():
        yield
    _statistics.cache_clear()  # it may hold a fake one


def steps_on_the_gpu(settings, count=4):
    names = [settings["name"], *settings]
    looked_at = any(sees_the_model(name) for name in names if name in OWN)
    with GPU:
        model = (Attentive if looked_at else Net)()
    optimizer = build_optimizer(settings, model)

    def closure(synchronize=True):
        for name, parameter in model.named_parameters():
            parameter.grad = None if name == "unused" else torch.randn_like(parameter)
        return torch.randn((), device=GPU)

    for _ in range(count):
        assert optimizer.step(closure).device == GPU
    for state in optimizer.state.values():
        assert {value.device for value in state.values()
                if torch.is_tensor(value) and value.ndim} <= {GPU}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_step_stays_on_the_gpu_and_asks_for_no_value(settings):
    steps_on_the_gpu(settings)


@pytest.mark.parametrize(("settings", "module", "names"), [
    ({"beta_rule": "scalar"}, curvature, ["warn_above_one"]),
    ({"sharpness_paths": "agam"}, three_paths, ["alignment"])], ids=["scalar", "agam"])
def test_a_variant_asks_once_in_a_sync_step(settings, module, names, monkeypatch):
    asked = []
    for name in names:
        monkeypatch.setattr(module, name, lambda *_: asked.append(1) or 0.5)
    steps_on_the_gpu({"name": "ars2_neo", "k": 1, "adaptive_sync": False, **settings}, 2)
    assert len(asked) == 2


@pytest.mark.parametrize("name", ASKS)
def test_who_asks_for_a_value_does_so_in_one_known_place(name):
    with pytest.raises(DataDependentOutputException) as caught:
        steps_on_the_gpu(ALL[name])
    assert ASKS[name] in asking(caught)


def test_hyperball_asks_when_it_is_built_and_never_again(monkeypatch):
    monkeypatch.setattr(hyperball, "are_nonzero", lambda params: [True] * len(params))
    steps_on_the_gpu(ALL["hyperball"])


def test_aga_asks_for_the_cosine_and_nothing_else(monkeypatch):
    settings = {"name": "ars2_neo", "k": 2, "adaptive_sync": True}
    with pytest.raises(DataDependentOutputException) as caught:
        steps_on_the_gpu(settings)
    assert "cosine" in asking(caught)
    asked = []
    monkeypatch.setattr(ars2_neo, "cosine", lambda *_: asked.append(1) or 0.5)
    steps_on_the_gpu(settings)
    assert asked


def asking(caught):
    """The functions of ours on the way to the question."""
    return [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)
            if "/optimizer/" in frame.filename]


def test_a_tensor_left_on_the_host_would_be_found():
    with pytest.raises(RuntimeError, match="devices"):  # a class of its own after torch 2.11
        torch.ones(3, device=GPU) + torch.ones(3)


def inputs(task):
    """A batch of the task, on the GPU."""
    with GPU:
        if task == "cifar":
            images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
            return augment(images, None, crop=4, flip=True, cutout=8), torch.zeros(8).long()
        tokens = torch.zeros(8, 3 if task == "grokking" else 15).long()
        return tokens, tokens if task in ("wikitext2", "ladder") else tokens[:, 0]


TASKS = {
    "grokking": (grokking, "grokking_transformer", {"vocab_size": 12}, loss_and_correct),
    "cifar": (cifar, "resnet18", {"num_classes": 10}, loss_and_correct),
    "wikitext2": (wikitext2, "qwen3", {"vocab_size": 300}, wikitext2.next_token_losses),
    "ladder": (ladder, "gpt", {"vocab_size": 256}, ladder.total_loss),
}


@pytest.mark.parametrize("task", TASKS)
def test_losses_stay_on_the_gpu_and_nobody_asks_for_them(task):
    script, model_name, sizes, measured = TASKS[task]
    settings = {"model": {"name": model_name}, "data": {}}
    for override in TINY[task]:
        apply_override(settings, override)
    with GPU:
        model = build_model(settings["model"], **sizes)
    batch = inputs(task)
    loss, means = script.TASK.loss_fn(model, *batch)
    assert {value.device for value in (loss, *means.values())} == {GPU}
    assert TASKS.keys() == set(tasks())
    with torch.no_grad():
        *rest, targets = batch
        targets = targets.flatten() if task == "wikitext2" else targets
        assert measured(model, *rest, targets).device == GPU
