"""Values: what a config may say besides its types, and the options that replace parts of it."""

import inspect
import random
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from exp.grokking.train import TASK, train
from exp.harness import cli, precheck
from exp.harness.build import build
from exp.harness.config import load_settings
from exp.harness.errors import ConfigError
from exp.harness.task import task_named
from exp.harness.toml import read_toml
from optimizer import __main__ as optimizers
from optimizer import build_optimizer, optimizer_class
from optimizer.parts.library import library_classes
from tests.conftest import TINY

GROK = Path("config/lrp_grok_ars2_neo_aga_400e.toml")
KFAC = ("optimizer={name = 'kfac', kl_clip = inf}",)


def grok(*overrides, **options):
    return load_settings(GROK, overrides, TASK, **options)


def launch(output, *options, config=GROK):
    """The exit status of a tiny run by the command line's own function."""
    tiny = [word for override in (*TINY["grokking"], "experiment.epochs=1")
            for word in ("--set", override)]
    return cli.launch(TASK, train, ["--config", str(config), "--device", "cpu", "--output",
                                    str(output), *tiny, *options])


@pytest.mark.parametrize(("override", "words"), [
    ("optimizer.adamw.lr=-1.0", "[optimizer.adamw] Invalid learning rate: -1.0"),
    ("optimizer.adamw.betas=[2.0, 2.0]", "[optimizer.adamw] Invalid beta"),
    ("optimizer.adamw.eps=nan", "[optimizer.adamw] eps must be finite in float32, got nan"),
    ("optimizer.eps=inf", "[optimizer] eps must be finite in float32, got inf"),
    ("optimizer.betas=[0.9, inf]", "[optimizer] betas must be finite in float32, got [0.9, inf]"),
    ("optimizer.sam={rho = inf}", "[optimizer.sam] rho must be finite"),
    ("optimizer={name = 'kfac', kl_clip = nan}", "[optimizer] kl_clip must be finite"),
    ("schedule.min_lr=-inf", "[schedule] min_lr must be finite"),
    ("schedule.period_epochs=inf", "[schedule] period_epochs must be finite"),
    ("experiment.stop_at=nan", "[experiment] stop_at must be finite"),
    ("data.fraction=inf", "[data] fraction must be finite"),
    ("experiment.clip_norm=0.0", "[experiment] clip_norm must be > 0, got 0.0"),
    ("experiment.accumulation=0", "[experiment] accumulation must be >= 1, got 0"),
    ("experiment.label_smoothing=1.0", "[experiment] label_smoothing must be in [0, 1), got 1.0"),
    pytest.param("optimizer.lr=1" + 400 * "0", "lr must be finite", id="lr=10**400"),
    ("optimizer.lr=1e300", "[optimizer] lr must be finite in float32, got 1e+300"),
    ("optimizer.lr=.01", "write the number as optimizer.lr=0.01"),
    ("optimizer.lr=1.", "write the number as optimizer.lr=1.0"),
    pytest.param("optimizer.betas=" + 9999 * "[", "is not a TOML value", id="[[[["),
    ("optimizer=3", "write table.key=value, or table={key = value}"),
    ("optimizer={lr = 3.0}", "[optimizer] missing key 'name'"),
])
def test_values_are_refused_by_name(override, words):
    with pytest.raises(ConfigError) as caught:
        grok(override)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_infinity_passes_where_it_means_something():
    assert grok(*KFAC)["optimizer"]["kl_clip"] == float("inf")
    settings = grok(optimizer="pytorch_optimizer:DAdaptAdam")
    assert settings["optimizer"]["growth_rate"] == float("inf")  # its own default


def test_a_byte_order_mark_is_no_content(tmp_path):
    path = tmp_path / "notepad.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GROK.read_bytes())
    assert load_settings(path, [], TASK) == grok()
    path.write_text("a = " + 9999 * "[")
    with pytest.raises(ConfigError, match="cannot read .*notepad.toml"):
        load_settings(path, [], TASK)


def test_the_optimizer_and_any_table_can_be_replaced_from_the_command_line(tmp_path):
    def table(name, *options):
        folder = tmp_path / name
        assert launch(folder, *options) == 0
        return tomllib.loads((folder / "config.toml").read_text())

    lion = table("lion", "--optimizer", "lion", "--set", "optimizer.lr=0.0005")["optimizer"]
    assert lion == {**grok(optimizer="lion")["optimizer"], "lr": 0.0005}
    assert "rho" not in lion
    replaced = table("sgd", "--set", "optimizer={name = 'sgd', lr = 0.5}")["optimizer"]
    assert (replaced["name"], replaced["lr"]) == ("sgd", 0.5)
    config = tmp_path / "wrapped.toml"
    config.write_text(GROK.read_text() + "\n[optimizer.sam]\nrho = 0.1\n")
    settings = load_settings(config, ["optimizer.k=3"], TASK, unset=["optimizer.sam",
                                                                    "optimizer.k"])
    assert "sam" not in settings["optimizer"]
    assert settings["optimizer"]["k"] == 3  # --set comes last
    assert "rho" in read_toml(GROK)["optimizer"]
    default = load_settings(config, [], TASK, unset=["optimizer.rho"])["optimizer"]["rho"]
    assert default == grok(optimizer="ars2_neo")["optimizer"]["rho"]


@pytest.mark.parametrize(("options", "words"), [
    (["--unset", "optimizer.roh"], "--unset optimizer.roh: unknown key 'roh'. Keys: name"),
    (["--unset", "optimizer.lr.x"], "lr is not a table"),
    (["--unset", "models.name"], "unknown key 'name'"),
    (["--optimizer", "lionn"], "Did you mean 'lion'"),
])
def test_a_wrong_replacement_is_one_line_and_writes_nothing(options, words, tmp_path, capsys):
    assert launch(tmp_path / "run", *options) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("optimizer", "words"), [
    ("{name = 'adam', capturable = true}", "adam cannot take a step: "),
    ("{name = 'adamw', differentiable = true}", "adamw cannot take a step: "),
    ("{name = 'lbfgs', routing = 'role', adamw = {lr = 0.1}}", "lbfgs cannot take a step: "),
    ("{name = 'pytorch_optimizer:LOMO'}", "LOMO cannot take a step: it does not implement step()"),
    ("{name = 'pytorch_optimizer:LoRARite'}", "its documentation says: LoRA factor optimization"),
    ("{name = 'pytorch_optimizer:A2Grad'}", "A2Grad has no lr"),
    ("{name = 'adamw', lawa = {k = 1000000000}}", "k must be at most 1000"),
    ("{name = 'pytorch_optimizer:SAM'}", "SAM wraps another optimizer, which a config cannot pass"),
])
def test_what_the_first_step_refuses_is_one_line_and_writes_nothing(optimizer, words, tmp_path,
                                                                    capsys):
    assert launch(tmp_path / "run", "--set", f"optimizer={optimizer}") == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("override", "words"), [
    ("model.d_mlp=1000000000", "weights or more do not fit into the 1 GiB"),
    ("model.d_model=100000000", "weights or more do not fit into the 1 GiB"),
    ("data.batch_size=1000000", "a batch of 1000000 examples needs"),
])
def test_sizes_beyond_the_memory_are_refused_before_it_is_asked_for(override, words, monkeypatch):
    monkeypatch.setattr(precheck, "total_memory", lambda device: 2**30)
    tiny = ("data.p=2000", "data.terms=2", "experiment.device='cpu'", "model.d_mlp=2000")
    with pytest.raises(ConfigError, match=words):
        build(grok(*tiny, override), TASK)
    build(grok("experiment.device='cpu'"), TASK)
    monkeypatch.setattr(precheck, "TENSORS", 5)
    with pytest.raises(ConfigError, match="more than 5 tensors in one model: use fewer layers"):
        build(grok("experiment.device='cpu'"), TASK)


@pytest.mark.parametrize("name", ["cifar", "grokking", "wikitext2"])
def test_the_step_that_is_tried_leaves_no_trace(name, tiny_data, monkeypatch):
    """Losses, random numbers and counts of a run with and without it, dropout, batch norms and the
    hooks of K-FAC included."""
    task = task_named(name)
    rule = {"cifar": "{name = 'kfac'}", "grokking": "{name = 'ars2_neo', k = 3, sam = {}}",
            "wikitext2": "{name = 'muon', lookahead = {}}"}[name]
    dropout = ["model.attention_dropout=0.5"] if name == "wikitext2" else []
    settings = load_settings(task.config, [*TINY[name], "experiment.device='cpu'", *dropout,
                                           f"optimizer={rule}"], task)

    def losses():
        built = build(settings, task)
        steps = [float(built.optimizer.step(built.objective.on(batch)))
                 for batch in built.data.train.epoch(0)]
        return [*steps, built.objective.gradient_evaluations, random.random(), np.random.rand(),
                float(torch.rand(1)), len(built.model.state_dict())]

    tried = losses()
    monkeypatch.setattr("exp.harness.build.require_step", lambda *_: None)
    assert losses() == tried


@pytest.mark.parametrize("name", ["pytorch_optimizer:Prodigy", "pytorch_optimizer:SCION",
                                  "adadelta"])
def test_a_rate_that_is_not_of_adamws_kind_is_not_shared_with_it(name):
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"set \[optimizer.adamw\] lr"):
        build_optimizer({"name": name, "routing": "all"}, model)
    built = build_optimizer({"name": name, "routing": "all", "adamw": {"lr": 0.1}}, model)
    assert [group["lr"] for group in built.param_groups] \
        == [inspect.signature(optimizer_class(name)).parameters["lr"].default, 0.1]
    assert len(build_optimizer({"name": name}, model).param_groups) == 1


def test_an_array_is_a_tuple_where_the_class_has_one():
    settings = grok(optimizer="pytorch_optimizer:QHAdam")["optimizer"]
    assert settings["nus"] == [1.0, 1.0]
    (group,) = build_optimizer(settings, nn.Linear(2, 2)).param_groups
    assert group["nus"] == (1.0, 1.0)


def test_the_router_says_which_parameters_of_a_librarys_muon_are_matrices():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5))
    groups = build_optimizer({"name": "pytorch_optimizer:Muon"}, model).param_groups
    assert [group["use_muon"] for group in groups] == [True, False]
    assert groups[0]["params"] == [model[1].weight]


def test_gradients_of_compiled_models_cannot_be_differentiated():
    with pytest.raises(ConfigError, match="AdaHessian differentiates gradients: set exp"):
        build(grok("optimizer={name = 'pytorch_optimizer:AdaHessian'}", "experiment.compile=true",
                   *TINY["grokking"], "experiment.device='cpu'"), TASK)


@pytest.mark.filterwarnings("ignore:Using backward")  # the reference's cycle
@pytest.mark.parametrize(("task", "name"), [
    ("grokking", "AdaHessian"), ("wikitext2", "SophiaH")])  # the latter's attention is fused
def test_a_rule_that_differentiates_gradients_takes_the_librarys_own_steps(task, name, tiny_data):
    of_task = task_named(task)
    settings = load_settings(of_task.config, [
        *TINY[task], "experiment.device='cpu'", f"optimizer={{name='pytorch_optimizer:{name}'}}"],
        of_task)

    def weights(plain):
        run = build(settings, of_task)
        torch.manual_seed(1)
        for batch in run.data.train.epoch(0):
            if plain:
                run.optimizer.zero_grad()
                with sdpa_kernel(SDPBackend.MATH):
                    of_task.loss_fn(run.model, *batch)[0].backward(create_graph=True)
                run.optimizer.step()
            else:
                run.optimizer.step(run.objective.on(batch))
        return torch.cat([p.detach().flatten() for p in run.model.parameters()])

    assert torch.equal(weights(plain=False), weights(plain=True))


def test_the_card_takes_a_step_with_each_class_of_a_library(monkeypatch, capsys):
    names = ["AdaHessian", "AliG", "BSAM", "LOMO", "Lion", "Lookahead", "SpectralSphere"]
    assert set(names) < set(library_classes("pytorch_optimizer"))
    monkeypatch.setattr("sys.argv", ["optimizer", "--library", "pytorch_optimizer"])
    with monkeypatch.context() as patch:
        patch.setattr("optimizer.parts.compatibility.library_classes", lambda _: names)
        assert optimizers.main() == 0
    words = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line)
    assert words.pop("3") == "of 7 run"
    assert {name for name, text in words.items() if text == "runs"} == {"AdaHessian", "Lion"}
    assert words["SpectralSphere"].startswith('runs with routing = "role"; alone: ')
    assert words["BSAM"] == "needs num_data"
    for package, said in (("json", "json has no optimizer classes"), ("exp", "not an installed"),
                          ("no_such", "no package no_such"), ("a/b", "not a package name")):
        monkeypatch.setattr("sys.argv", ["optimizer", "--library", package])
        assert optimizers.main() == 2
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(("optimizer", "words"), [
    ("{name = 'muon', ns_steps = 1000000000}", "ns_steps must be at most 1000, got 1000000000"),
    ("{name = 'ada_rmsuon', ns_passes = 1001}", "ns_passes must be at most 1000, got 1001"),
    ("{name = 'pytorch_optimizer:Muon', ns_steps = 10000000}",
     "tensor operations in one step: use fewer iterations")])
def test_a_step_that_would_never_end_is_refused(optimizer, words):
    with pytest.raises(ConfigError, match=words):
        build(grok(*TINY["grokking"], "experiment.device='cpu'", f"optimizer={optimizer}"), TASK)
    assert torch.is_grad_enabled()
