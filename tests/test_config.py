"""Configuration: signatures as schema, overrides, and a clear refusal of everything else."""

import math
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from data.modular import modular
from exp.harness.build import build
from exp.harness.config import complete, load_settings
from exp.harness.errors import ConfigError
from exp.harness.schedule import Schedule
from exp.harness.schema import conforms
from exp.harness.toml import to_toml
from exp.wikitext2.train import TASK as WIKITEXT2
from optimizer import optimizer_class
from optimizer.parts import library

CONFIGS = sorted(Path("config").rglob("*.toml"))
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

    settings = grok("optimizer.sam={rho = 0.1}", "optimizer.adamw.head.lr=0.1")
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
    ("experiment.diagnostics=['spectra']", ["an array, each one of 'spectrum', 'updates'"]),
    ("optimizer.energy_norm='big'", ["energy_norm must be one of 'literal'"]),
    ("optimizer.name='adamv'", ["unknown optimizer 'adamv'", "Did you mean 'adam"]),
    ("optimizer.name='sparse_adam'", ["unknown optimizer 'sparse_adam'"]),
    ("optimizer.name='sam'", ["wraps another optimizer"]),
    ("optimizer.name='os:path'", ["no optimizer class"]),
    ("optimizer.routing='magic'", ["routing must be one of 'role'"]),
    ("optimizer.adamw.beta=1", ["[optimizer.adamw]", "unknown key 'beta'", "betas"]),
    ("optimizer.adamw.head=1", ["[optimizer.adamw]", "unknown key 'head'"]),
    ("optimizer.adamw.head.momentum=1", ["[optimizer.adamw.head]", "unknown key 'momentum'"]),
    ("optimizer.muon.lr=1.0", ["not a wrapper"]),
    ("optimizer.sam.radius=1.0", ["[optimizer.sam]", "rho"]),
    ("model.name='bert'", ["unknown model 'bert'", "qwen3"]),
    ("model.name='resnet19'", ["Did you mean 'resnet18'"]),
    ("model.vocab_size=5", ["unknown key 'vocab_size'"]),
    ("model.activation='tanh'", ["'relu'", "'gelu'"]),
    ("data.fractoin=0.5", ["Did you mean 'fraction'"]),
    ("data.batch_size=true", ["batch_size must be a whole number"]),
    ("schedule.name='cosin'", ["'cosine'"]),
    ("schedule.batch_scaling='cubic'", ["batch_scaling must be one of 'none', 'linear', 'sqrt'"]),
    ("schedule.batch_size=8", ["unknown key 'batch_size'", "base_batch_size"]),
    ("schedule.base_batch_size=1.5", ["base_batch_size must be a whole number"]),
    ("schedule.weight_decay=0.1", ["weight_decay must be one of 'constant', 'cosine'"]),
    ("schedul.name='cosine'", ["unknown table [schedul]"]),
    ("experiment.epochs=0", ["epochs must be >= 1"]),
    ("experiment.seed=-1", ["seed must be"]),
    ("experiment.diagnostics_every=5", ["diagnostics_every 5 has no effect"]),
    ("experiment.device='tpu'", ["device must be one of"]),
    ("experiment.task='cifar'", ["python -m exp.cifar.train"]),
    ("epochs=3", ["write table.key=value"]),
    ("experiment.epochs", ["write table.key=value"]),
    ("optimizer.name=adamw", ["strings need quotes"]),
    ("optimizer.lr.x=1", ["lr is not a table"]),
    ("optimizer.lr=1\noptimizer.k=2", [r"--set 'optimizer.lr=1\noptimizer.k=2': "]),
    (r'optimizer={name="adamw", "a\nb"={}}', [r"[optimizer.'a\nb'] unknown optimizer 'a\nb'"]),
    (r'experiment.task="a\nb"', [r"run python -m exp.'a\nb'.train"]),
])
def test_each_mistake_gets_a_message_that_helps(override, words):
    with pytest.raises(ConfigError) as caught:
        grok(override)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("key", ["hold", "linger"])
def test_what_goes_with_stop_at_is_refused_without_it(key):
    from exp.grokking.train import TASK

    assert grok(f"experiment.{key}=2")["experiment"]["stop_at"] == 0.995
    with pytest.raises(ConfigError, match="have no effect without stop_at"):
        load_settings(GROK, [f"experiment.{key}=2"], TASK, unset=["experiment.stop_at"])


def test_a_config_cannot_import_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "rule.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "wicked.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    for name in ("evil:X", "evil.rule:X", "wicked:X", "outputs.evil:X", "exp.tune.score:X"):
        with pytest.raises(ValueError, match="not an installed package|no package"):
            optimizer_class(name)
    for name in ("this:X", "antigravity:X"):  # these do something when they are imported
        with pytest.raises(ValueError, match="it is in Python's standard library"):
            optimizer_class(name)
    assert not {"evil", "evil.rule", "wicked", "outputs", "this"} & sys.modules.keys()
    assert optimizer_class("torch:RAdam") is torch.optim.RAdam
    installed = Path(torch.__file__).parents[1] / "ars_optim" / "parts" / "library.py"
    monkeypatch.setattr(library, "__file__", str(installed))  # as a package, beside others
    assert optimizer_class("torch.optim.radam:RAdam") is torch.optim.RAdam


@pytest.mark.parametrize("name", ["adafactor", "pytorch_optimizer:SCION", "pytorch_optimizer:ADOPT",
                                  "pytorch_optimizer:Kron", "pytorch_optimizer:AdaShift"])
def test_defaults_that_toml_cannot_say_stay_with_the_library(name):
    from exp.grokking.train import TASK

    settings = load_settings(Path("config/lrp_grok_adamw_600e.toml"), [], TASK)
    settings["optimizer"] = {"name": name}
    done = complete(settings, TASK)
    assert complete(tomllib.loads(to_toml(done)), TASK) == done
    assert "lr" in done["optimizer"]


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


def test_shapes_of_the_decay_by_hand():
    """A decay over the last four of ten steps, at the parts 0, 1/4, 1/2, 3/4 of it."""
    for shape, expected in (("linear", [1, 0.75, 0.5, 0.25]),
                            ("sqrt", [1, 0.5, 0.2928932188, 0.1339745962]),
                            ("cosine", [1, 0.8535533906, 0.5, 0.1464466094])):
        found = rates(1, 10, name="wsd", decay_share=0.4, shape=shape)
        assert found == pytest.approx([1] * 6 + expected)
    assert rates(1, 4, name="wsd", decay_share=1.0) == rates(1, 4, name="linear")
    assert rates(1, 4, name="linear", warmup_steps=2) == pytest.approx([0.5, 0.75, 0.5, 0.25])


def test_the_adamw_track_decays_for_its_own_share():
    optimizer = build_muon([nn.Parameter(torch.ones(2, 2))], [nn.Parameter(torch.ones(2))])
    schedule = Schedule(optimizer, 1, 10, name="wsd", decay_share=0.8, adamw_decay_share=0.4)
    found = []
    for step in range(10):
        schedule.set_lr(step)
        found.append([group["lr"] for group in optimizer.param_groups])
    matrices, rest = zip(*found, strict=True)
    assert matrices == pytest.approx([0.1, 0.1] + [0.1 * left / 8 for left in range(8, 0, -1)])
    assert rest == pytest.approx([0.02] * 6 + [0.02, 0.015, 0.01, 0.005])


def test_exponential_and_one_cycle_by_hand():
    found = rates(2, 10, name="exponential", period_epochs=1)
    assert [found[step] for step in (0, 1, 5, 10, 19)] == pytest.approx(
        [1, 0.6309573445, 0.1, 0.01, 0.01])
    assert rates(1, 4, name="exponential", end_ratio=0.0625) == pytest.approx([1, .5, .25, .125])
    assert rates(1, 10, name="one_cycle") == pytest.approx(
        [.04, .52, 1, .950484632, .8117456539, .6112620219, .3887419781, .1882583461, .049519368,
         .000004])
    by_epoch = rates(10, 2, name="one_cycle", interval="epoch")
    assert by_epoch[::2] == by_epoch[1::2] == rates(1, 10, name="one_cycle")
    assert rates(1, 1, name="one_cycle") == pytest.approx([.000004])  # fewer than a top needs


@pytest.mark.parametrize("rule", ["SGD", "AdamW"])
def test_one_cycle_is_torchs(rule):
    """Rate and momentum at each of 20 steps, with a warm-up of 8, resumed after 10."""
    def make():
        settings = {"momentum": 0.9} if rule == "SGD" else {"betas": (0.9, 0.98)}
        return getattr(torch.optim, rule)([nn.Parameter(torch.ones(1))], lr=0.3, **settings)

    ours, theirs = make(), make()
    torchs = torch.optim.lr_scheduler.OneCycleLR(theirs, max_lr=0.3, total_steps=20, pct_start=0.4,
                                                 three_phase=False)
    settings = {"name": "one_cycle", "warmup_steps": 8, "momentum": "cycle"}
    schedule = Schedule(ours, 2, 10, **settings)
    for step in range(20):
        if step == 10:
            saved, ours = ours.state_dict(), make()
            schedule = Schedule(ours, 2, 10, **settings)
            ours.load_state_dict(saved)
        schedule.set_lr(step)
        for key in ("lr", "momentum", "betas"):
            if key in theirs.param_groups[0]:
                assert ours.param_groups[0][key] == pytest.approx(theirs.param_groups[0][key])
        theirs.step()
        torchs.step() if step < 19 else None


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
    # Two of four epochs to warm up, three steps each: 1/2, then 1, as an epoch is one step.
    found = rates(4, 3, name="linear", warmup_epochs=2, interval="epoch")
    assert found == pytest.approx([0.5] * 3 + [0.75] * 3 + [0.5] * 3 + [0.25] * 3)


def test_impossible_schedules_are_refused():
    for settings in ({"warmup_epochs": -1.0}, {"period_epochs": 0.0},
                     {"name": "cosine", "min_lr": 2.0}, {"warmup_epochs": math.nan}):
        with pytest.raises(ValueError, match="min_lr|period"):
            rates(1, 1, **settings)


@pytest.mark.parametrize(("settings", "words"), [
    ({"name": "cosine", "decay_share": 0.2}, r'decay_share 0.2 has no effect on "cosine"'),
    ({"name": "wsd", "decay_share": 0.0}, r"decay_share must be in \(0, 1\], got 0.0"),
    ({"name": "wsd", "adamw_decay_share": 1.5}, r"adamw_decay_share must be in \(0, 1\]"),
    ({"name": "wsd", "adamw_decay_share": 0.5}, "no parameter group is on the AdamW track"),
    ({"name": "linear", "shape": "sqrt"}, "shape 'sqrt' has no effect"),
    ({"name": "wsd", "end_ratio": 0.1}, 'it needs name = "one_cycle" or "exponential"'),
    ({"name": "exponential", "end_ratio": math.nan}, "end_ratio must be"),
    ({"name": "exponential", "min_lr": 0.1}, 'min_lr has no effect on "exponential", got 0.1'),
    ({"name": "one_cycle", "warmup_steps": 5}, "longer than the period"),
    ({"name": "one_cycle", "momentum": "cycle"}, "no parameter group has a momentum"),
    ({"warmup_steps": -1}, "warmup_steps must be >= 0"),
    ({"warmup_steps": 2, "warmup_epochs": 1.0}, "0 if warmup_epochs is set, got 2 and 4 steps")])
def test_keys_that_go_with_no_such_schedule_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        rates(1, 4, **settings)


@pytest.mark.parametrize(("scaling", "expected"), [
    ("none", [0.1, 0.02]), ("linear", [0.4, 0.08]), ("sqrt", [0.2, 0.04])])
def test_batch_scaling_multiplies_the_rate_of_every_group(scaling, expected):
    """Batches of 256 with rates found at 64: linear 4, sqrt 2."""
    w, b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = build_muon([w], [b])
    base = {} if scaling == "none" else {"base_batch_size": 64}
    for _ in range(2):  # made anew on the same optimizer: not scaled twice
        schedule = Schedule(optimizer, 1, 4, name="linear", batch_scaling=scaling, batch_size=256,
                            **base)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected)
    schedule.set_lr(3)
    found = [group["lr"] for group in optimizer.param_groups]
    assert found == pytest.approx([rate / 4 for rate in expected])


def build_muon(matrices, rest):
    return optimizer_class("muon")([{"params": matrices, "lr": 0.1, "weight_decay": 0.5},
                                    {"params": rest, "lr": 0.02, "weight_decay": 0.0}])


@pytest.mark.parametrize("settings", [
    {"batch_scaling": "linear"}, {"batch_scaling": "sqrt", "base_batch_size": 0},
    {"base_batch_size": 64}])
def test_a_batch_scaling_needs_its_base_and_a_base_its_scaling(settings):
    with pytest.raises(ValueError, match="base_batch_size"):
        rates(1, 1, batch_size=128, **settings)


def test_the_batch_size_of_the_data_scales_the_rate_of_a_run():
    from exp.grokking.train import TASK

    settings = grok("data.batch_size=32", "optimizer.lr=0.01", "optimizer.adamw.lr=0.02",
                    "schedule.batch_scaling='linear'", "schedule.base_batch_size=64",
                    "data.p=11", "experiment.device='cpu'")
    assert settings["schedule"]["batch_scaling"] == "linear"
    assert settings["schedule"]["base_batch_size"] == 64
    groups = build(settings, TASK).optimizer.param_groups
    assert [group["lr"] for group in groups] == pytest.approx([0.005, 0.01])


@pytest.mark.parametrize(("decay", "expected"), [
    ("constant", [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]),
    ("cosine", [0.0, 0.5 * (1 - 0.5**0.5), 0.5, 0.5 * (1 + 0.5**0.5), 1.0, 1.0]),
    ("half_cosine", [0.0, 0.25 * (1 - 0.5**0.5), 0.25, 0.25 * (1 + 0.5**0.5), 0.5, 0.5]),
    ("lr", [0.25, 0.375, 0.25, 0.125, 0.0, 0.0])])
def test_weight_decay_schedules_by_hand(decay, expected):
    """wd 0.5 over a period of 4 of 6 steps, beside a linear rate with 2 steps of warm-up."""
    w, b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = build_muon([w], [b])
    schedule = Schedule(optimizer, 6, 1, name="linear", warmup_epochs=2, period_epochs=4,
                        weight_decay=decay)
    found = []
    for step in range(6):
        schedule.set_lr(step)
        matrix, rest = optimizer.param_groups
        found.append(matrix["weight_decay"])
        assert rest["weight_decay"] == 0
    assert found == pytest.approx(expected)


def test_scheduled_decay_reaches_the_weights_and_survives_a_checkpoint():
    """Lion with zero gradients: W is multiplied by 1 - lr wd_t at every step, also after a load."""
    def make(w):
        optimizer = optimizer_class("lion")([w], lr=0.1, weight_decay=0.5)
        return optimizer, Schedule(optimizer, 4, 1, weight_decay="cosine")

    w = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer, schedule = make(w)
    expected = 1.0
    for step in range(4):
        if step == 2:
            saved = optimizer.state_dict()
            optimizer, schedule = make(w)
            optimizer.load_state_dict(saved)
        schedule.set_lr(step)
        w.grad = torch.zeros_like(w)
        optimizer.step()
        expected *= 1 - 0.1 * 0.5 * (1 - math.cos(math.pi * step / 4))
        assert float(w.detach()) == pytest.approx(expected, rel=1e-12)


def test_a_changing_decay_of_nothing_is_refused():
    with pytest.raises(ValueError, match="weight_decay 'cosine' has no effect"):
        rates(1, 1, weight_decay="cosine")


def test_task_data_functions_are_schemas_without_var_keywords():
    with pytest.raises(TypeError):
        modular(512, 113, 0.3, seed=1, device=torch.device("cpu"), nonsense=1)


def test_reading_a_config_does_not_import_what_trains():
    code = ("import sys, exp.harness.config; print(*(name for name in sys.modules"
            " if name.startswith('exp.')))")
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert set(imported.stdout.split()) == {f"exp.harness.{name}" for name in (
        "config", "curves", "errors", "schedule", "schema", "task", "toml")} | {"exp.harness"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_says_how_to_run_it(path):
    first, second = path.read_text().splitlines()[:2]
    assert first.endswith(f"--config {path.as_posix()}")
    assert first.startswith("# python -m exp.")
    assert second.startswith("# ")


def test_only_tf32_lets_cuda_round_the_operands_of_products():
    flags = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [flag.allow_tf32 for flag in flags]
    try:
        for precision, allowed in (("tf32", True), ("fp32", False), ("bf16", False)):
            build_tiny_grokking(f'experiment.precision="{precision}"')
            assert [flag.allow_tf32 for flag in flags] == [allowed, allowed]
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


def build_tiny_grokking(*overrides):
    from exp.grokking.train import TASK

    return build(grok("data.p=7", "model.d_model=16", *overrides), TASK)
