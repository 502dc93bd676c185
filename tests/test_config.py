"""Configuration: signatures as schema, overrides, and a clear refusal of everything else."""

import tomllib
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from data.modular_addition import modular_addition
from exp.harness.config import ConfigError, complete, load_settings
from exp.harness.schedule import Schedule
from exp.harness.schema import conforms
from exp.harness.toml import to_toml
from exp.wikitext2.train import TASK as WIKITEXT2

CONFIGS = sorted(Path("config").glob("*.toml"))
GROK = Path("config/lrp_grok_ars2_neo_aga_400e.toml")


def grok(*overrides):
    from exp.grokking.train import TASK

    return load_settings(GROK, overrides, TASK)


def test_defaults_are_filled_in_and_overrides_win():
    settings = grok("optimizer.rho=0.25", "experiment.epochs=3", "optimizer.adamw.lr=0.5")
    assert settings["optimizer"]["rho"] == 0.25
    assert settings["optimizer"]["adamw"]["lr"] == 0.5
    assert settings["optimizer"]["eps"] == 1e-8  # a default of the constructor
    assert settings["experiment"]["epochs"] == 3
    assert settings["schedule"]["name"] == "constant"


def test_the_resolved_settings_survive_toml_and_resolve_to_themselves():
    from exp.grokking.train import TASK

    settings = grok("optimizer.sam={rho = 0.1}")
    again = tomllib.loads(to_toml(settings))
    assert again == settings
    assert complete(again, TASK) == settings


@pytest.mark.parametrize(("override", "words"), [
    ("optimizer.learning_rate=1.0", ["[optimizer]", "learning_rate", "Accepted", "lr"]),
    ("optimizer.ro=0.1", ["Did you mean 'rho'"]),
    ("optimizer.lr='high'", ["lr must be a number", "'high'"]),
    ("optimizer.k=1.5", ["k must be a whole number", "1.5"]),
    ("optimizer.adaptive_sync=1", ["true or false"]),
    ("optimizer.betas=[0.9]", ["betas must be an array of 2"]),
    ("optimizer.energy_norm='big'", ["energy_norm must be one of 'literal'"]),
    ("optimizer.name='adamx'", ["unknown optimizer 'adamx'", "adamw"]),
    ("optimizer.name='sam'", ["wraps another optimizer"]),
    ("optimizer.name='os:path'", ["no optimizer class"]),
    ("optimizer.routing='magic'", ["routing must be one of 'role'"]),
    ("optimizer.adamw.beta=1", ["[optimizer.adamw]", "unknown key 'beta'", "betas"]),
    ("optimizer.muon.lr=1.0", ["no wrapper"]),
    ("optimizer.sam.radius=1.0", ["[optimizer.sam]", "rho"]),
    ("model.name='gpt'", ["unknown model 'gpt'", "qwen3"]),
    ("model.vocab_size=5", ["unknown key 'vocab_size'"]),
    ("model.activation='tanh'", ["'relu'", "'gelu'"]),
    ("data.fractoin=0.5", ["Did you mean 'fraction'"]),
    ("data.batch_size=true", ["batch_size must be a whole number"]),
    ("schedule.name='cosin'", ["'cosine'"]),
    ("schedul.name='cosine'", ["unknown table [schedul]"]),
    ("experiment.epochs=0", ["epochs must be >= 1"]),
    ("experiment.seed=-1", ["seed must be"]),
    ("experiment.device='tpu'", ["device must be one of"]),
    ("experiment.task='cifar'", ["python -m exp.cifar.train"]),
    ("epochs=3", ["write table.key=value"]),
    ("experiment.epochs", ["write table.key=value"]),
    ("optimizer.name=adamw", ["strings need quotes"]),
    ("optimizer.lr.x=1", ["lr is no table"]),
])
def test_each_mistake_gets_a_message_that_helps(override, words):
    with pytest.raises(ConfigError) as caught:
        grok(override)
    for word in words:
        assert word in str(caught.value)


def test_all_mistakes_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        grok("optimizer.ro=0.1", "data.q=3", "model.depth=1", "experiment.speed=9")
    assert len(str(caught.value).splitlines()) == 4


def test_missing_tables_and_keys(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("[experiment]\nepochs = 1\n")
    with pytest.raises(ConfigError, match=r"missing table \[data\]"):
        load_settings(path, [], WIKITEXT2)
    path.write_text('[experiment]\ntask = "wikitext2"\n[data]\n[model]\n[optimizer]\nlr = 1.0\n')
    with pytest.raises(ConfigError) as caught:
        load_settings(path, [], WIKITEXT2)
    assert "missing key 'epochs'" in str(caught.value)
    assert "[model] missing key 'name'" in str(caught.value)


@pytest.mark.parametrize("text", ["[experiment\n", "a = = 1"])
def test_broken_toml_names_the_file(tmp_path, text):
    path = tmp_path / "broken.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="broken.toml"):
        load_settings(path, [], WIKITEXT2)
    with pytest.raises(ConfigError, match="no config file"):
        load_settings(tmp_path / "absent.toml", [], WIKITEXT2)


@pytest.mark.parametrize(("value", "annotation", "fits"), [
    (1, float, True), (True, float, False), (True, int, False), (1.0, int, False),
    ([0.9, 0.99], tuple[float, float], True), ([1, 2, 3], tuple[float, float], False),
    ("a", Literal["a", "b"], True), (1, Literal[True], False),
    ("x", float | None, False), ([1, 2], list[int], True), (["x"], list[int], False)])
def test_conforms(value, annotation, fits):
    assert conforms(value, annotation) is fits


def rates(epochs, steps, base=1.0, **settings):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=base)
    schedule = Schedule(optimizer, epochs, steps, **settings)
    found = []
    for step in range(epochs * steps):
        schedule.set_lr(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_schedules_by_hand():
    assert rates(2, 2) == [1, 1, 1, 1]
    assert rates(1, 4, name="linear") == pytest.approx([1, 0.75, 0.5, 0.25])
    assert rates(1, 4, name="linear", warmup_epochs=0.5) == pytest.approx([0.5, 0.75, 0.5, 0.25])
    assert rates(1, 4, name="linear", min_lr=0.2) == pytest.approx([1, 0.8, 0.6, 0.4])
    assert rates(1, 10, name="wsd")[7:] == pytest.approx([1, 1, 0.5])
    assert rates(3, 1, name="step", period_epochs=1) == pytest.approx([1, 0.1, 0.01])


def test_cosine_by_epoch_is_what_torch_does():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.3)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5, eta_min=0.01)
    expected = []
    for _ in range(5):
        expected += [optimizer.param_groups[0]["lr"]] * 3
        optimizer.step()
        torchs.step()
    found = rates(5, 3, 0.3, name="cosine", min_lr=0.01, interval="epoch")
    assert found == pytest.approx(expected)


def test_impossible_schedules_are_refused():
    for settings in ({"warmup_epochs": -1.0}, {"period_epochs": 0.0},
                     {"name": "cosine", "min_lr": 2.0}):
        with pytest.raises(ValueError, match="min_lr|period"):
            rates(1, 1, **settings)


def test_task_data_functions_are_schemas_without_var_keywords():
    with pytest.raises(TypeError):
        modular_addition(512, 113, 0.3, seed=1, device=torch.device("cpu"), nonsense=1)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_says_how_to_run_it(path):
    first, second = path.read_text().splitlines()[:2]
    assert first.endswith(f"--config config/{path.name}")
    assert first.startswith("# python -m exp.")
    assert second.startswith("# ")
