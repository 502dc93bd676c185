"""Golden losses: a few tiny steps of every optimizer file and every task, kept in tests/golden/.

They fail when numbers change and no RECIPE was raised (exp/harness/recipes.py). The same numbers
come out on any processor, up to rounding: all is computed in float64. After raising a RECIPE, or
for a new file:

    python -m pytest tests/test_golden.py --write-golden
"""

import contextlib
import inspect
import json
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from exp.harness import schema
from exp.harness.build import build
from exp.harness.config import complete
from exp.harness.recipes import optimizer_modules, recipe, recipes
from exp.harness.task import task_named, tasks
from exp.harness.toml import apply_override, read_toml
from model.grokking_transformer import GrokkingTransformer
from optimizer import (
    GIVEN_BY_CODE,
    available_optimizers,
    build_optimizer,
    is_wrapper,
    optimizer_class,
)
from optimizer.parts.base import set_mode
from optimizer.parts.delta import Delta

GOLDEN = Path(__file__).parent / "golden"
COMMAND = "python -m pytest tests/test_golden.py --write-golden"
STEPS = 6
OPTIMIZERS = [name for name in available_optimizers()
              if optimizer_class(name).__module__.startswith("optimizer.")]
# Relative. Weights of a task start in float32, whose random numbers differ in the last digit
# between processors; those of the optimizers' models come from numpy, in float64.
TOLERANCE = {"optimizer": 1e-9, "task": 1e-6}
# Numbers that choose between branches; other values of a Literal or bool are tried by themselves.
NUMBERS = {
    "ars2_neo": [{"k": 0}, {"k": 3}, {"k": 3, "shear_storage": "bf16"},
                 {"k": 3, "shear_storage": "8bit"}, {"k": 4, "adaptive_sync": True},
                 {"k": 4, "adaptive_sync": True, "adaptive_lambda": 0.1},
                 {"rho_schedule": "gap", "rho_gap": 0.01},
                 {"k": 3, "beta_rule": "element", "rho_rule": "curvature", "ns_passes": 2}],
    "ada_rmsuon": [{"ns_passes": 2}],
    "ars": [{"k": 3}, {"rho_schedule": "gap", "rho_gap": 0.01}],
    "sam": [{"rho_schedule": "gap", "rho_gap": 0.01}],
    "swa": [{"every": 2}], "lawa": [{"every": 2, "k": 2}],
    "ema": [{"horizon": 3.0, "start": 2, "share": 0.6}],
    "looksam": [{"k": 3}], "lookahead": [{"k": 3}, {"k": 2, "outer_momentum": 0.5}],
    "diloco": [{"k": 3}],
    "ema_nesterov": [{"prefill": 1}, {"prefill": 1, "rest": 3}], "qk_clip": [{"tau": 0.01}],
    "adamw_8bit": [{"min_8bit_size": 1}], "low_rank_muon": [{"k": 2}],
    "newton_muon": [{"refresh_interval": 2}],
    "sophia_h": [{"k": 2}], "error_feedback": [{"momentum": 0.9, "ratio": 0.3}],
    "kl_soap": [{"precondition_frequency": 2}],
    "soap": [{"precondition_frequency": 3}], "soap_muon": [{"precondition_frequency": 3}],
    "kfac": [{"factor_interval": 2, "inverse_interval": 3}],
}
ROUNDING = ("soap_muon", "svd")  # magnifies rounding: 1e-14 in the weights, 1e-7 in the loss
# No default rate, or one for batches of thousands.
RATES = {"lars": 0.1}


class ConvNet(nn.Module):
    """images (batch, 2, 6, 6) -> logits (batch, 5): a convolution and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.hidden, self.head = nn.Linear(64, 12), nn.Linear(12, 5)

    def forward(self, images):
        return self.head(torch.tanh(self.hidden(torch.tanh(self.conv(images)).flatten(1))))

    def roles(self):
        known = {"conv.weight": "hidden", "hidden.weight": "hidden", "head.weight": "head"}
        return {name: known.get(name, "vector") for name, _ in self.named_parameters()}


class Square(nn.Sequential):
    """Linear layers: the last one is the head."""

    def roles(self):
        head = f"{len(self) - 2}.weight"
        return {name: "vector" if p.ndim < 2 else "head" if name == head else "hidden"
                for name, p in self.named_parameters()}


def transformer():
    """A model in float64, inputs and targets: all sums of two numbers mod 7."""
    model = GrokkingTransformer(8, d_model=12, num_heads=2, d_head=4, d_mlp=20, activation="gelu")
    pairs = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    tokens = torch.cat([pairs, torch.full((len(pairs), 1), 7)], 1)
    return with_numbers(model), tokens, pairs.sum(1) % 7


def convnet():
    """A model in float64, inputs and targets: noise."""
    numbers = np.random.default_rng(1)
    images = torch.tensor(numbers.standard_normal((40, 2, 6, 6)))
    return with_numbers(ConvNet()), images, torch.tensor(numbers.integers(0, 5, 40))


def square():
    """A model of square matrices in float64, inputs and targets: noise. Its gradients have full
    rank, so that rounding decides nothing in decompositions."""
    numbers = np.random.default_rng(2)
    model = Square(*(layer for _ in range(3) for layer in (nn.Linear(8, 8), nn.Tanh())))
    inputs = torch.tensor(numbers.standard_normal((40, 8)))
    return with_numbers(model), inputs, torch.tensor(numbers.integers(0, 8, 40))


def with_numbers(model):
    numbers = np.random.default_rng(0)
    for p in model.parameters():
        p.data = torch.tensor(numbers.standard_normal(p.shape) * 0.4)
    return model


def losses(table, made):
    """The loss before each of STEPS full-batch steps, and after them with the weights to evaluate.
    """
    torch.manual_seed(0)
    model, inputs, targets = made()
    optimizer = build_optimizer(table, model)

    def closure(create_graph=False, synchronize=True):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward(create_graph=create_graph)
        return loss

    found = [optimizer.step(closure).item() for _ in range(STEPS)]
    set_mode(optimizer, "eval")
    return [*found, closure().item()]


def cases(name):
    """Case -> keywords of an optimizer file: its defaults, every other value of a Literal or bool
    alone, and NUMBERS. Without ns_dtype: narrow products round differently on every processor."""
    found = [{}, *NUMBERS.get(name, [])]
    for key, parameter in schema.keywords(optimizer_class(name), GIVEN_BY_CODE).items():
        values = typing.get_args(parameter.annotation) if typing.get_origin(
            parameter.annotation) is typing.Literal else ()
        values = (True, False) if parameter.annotation is bool else values
        found += [{key: value} for value in values
                  if value != parameter.default and (name, value) != ROUNDING
                  and key != "ns_dtype"]
    return {json.dumps(keywords, sort_keys=True): keywords for keywords in found}


def table_of(name, keywords):
    if is_wrapper(optimizer_class(name)):
        decay = 0.0 if issubclass(optimizer_class(name), Delta) else 0.1
        return {"name": "adamw", "weight_decay": decay, name: keywords}
    rate = {"lr": RATES[name]} if name in RATES else {}
    decays = "weight_decay" in inspect.signature(optimizer_class(name)).parameters
    return {"name": name, **rate, **({"weight_decay": 0.1} if decays else {}), **keywords}


def models(name, case):
    """The models that a case is run on."""
    if "soap" in name or "svd" in case:
        return (square,)
    if name in ("kfac", "newton_muon") or "conv" in case:
        return (convnet,)
    return (transformer, convnet) if case == "{}" else (transformer,)


def measured(name):
    """Case and model -> losses, for every one that the rule accepts."""
    found = {}
    for case, keywords in cases(name).items():
        for made in models(name, case):
            with contextlib.suppress(ValueError):  # the rule refuses the combination
                found[f"{made.__name__} {case}"] = losses(table_of(name, keywords), made)
    return found


def run_of(name):
    """A task at its tiny scale with SGD: its settings, the loss of the first batch of STEPS epochs,
    and its evaluation then. At this rate rounding does not grow, at 0.1 a ResNet's does."""
    task = task_named(name)
    settings = read_toml(task.config)
    settings["experiment"] |= {"seed": 1, "device": "cpu"}
    settings["optimizer"] = {"name": "sgd", "lr": 0.01, "momentum": 0.9}
    for override in task.scale("tiny"):
        apply_override(settings, override)
    settings = complete(settings, task)
    run = build(settings, task)
    run.model.double().register_forward_pre_hook(lambda _, inputs: tuple(
        part.double() if part.is_floating_point() else part for part in inputs))
    found = {"train": []}
    for epoch in range(STEPS):
        run.schedule.set_lr(epoch * len(run.data.train))
        run.optimizer.step(run.objective.on(next(run.data.train.epoch(epoch))))
        found["train"].append(float(run.objective.last_loss))
    return settings, found | {
        key: [value] for key, value in task.evaluate(run.objective, run.data).items()}


def check(path, numbers, found, tolerance, write):
    """Compare with the stored numbers; write them where they are new or a RECIPE was raised."""
    stored = json.loads(path.read_text()) if path.exists() else {"recipes": {}, "losses": {}}
    raised = stored["recipes"] != numbers
    changed = [case for case in found.keys() & stored["losses"].keys()
               if found[case] != pytest.approx(stored["losses"][case], rel=tolerance)]
    if changed and not raised:
        pytest.fail(f"{path.stem} computes other losses than tests/golden/{path.name} has "
                    f"({', '.join(sorted(changed))}). If that is wanted, raise RECIPE in the "
                    f"module that changed (now {numbers}; runs kept with that number no longer "
                    f"count), then: {COMMAND}", pytrace=False)
    if write:
        path.parent.mkdir(exist_ok=True)
        lines = ",\n".join(f"{json.dumps(case)}: {json.dumps(found[case])}" for case in found)
        path.write_text(f'{{"recipes": {json.dumps(numbers)},\n"losses": {{\n{lines}\n}}}}\n')
    elif raised or found.keys() != stored["losses"].keys():
        pytest.fail(f"tests/golden/{path.name} is missing or of another RECIPE or other cases: "
                    f"{COMMAND}", pytrace=False)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_computes_what_it_did(name, request):
    numbers = {module: recipe(module) for module in sorted(
        optimizer_modules(table_of(name, {}))) if module.startswith("optimizer.")}
    try:
        found = measured(name)
    except ImportError as error:  # a package that only this rule needs
        pytest.skip(str(error))
    check(GOLDEN / f"{name}.json", numbers, found, TOLERANCE["optimizer"],
          request.config.getoption("--write-golden"))


# --- the check itself


@pytest.fixture
def kept(tmp_path):
    path = tmp_path / "rule.json"
    check(path, {"optimizer.rule": 1}, {"{}": [2.0, 1.0]}, 1e-9, write=True)
    return path


def test_unchanged_losses_pass_up_to_rounding(kept):
    check(kept, {"optimizer.rule": 1}, {"{}": [2.0, 1.0 + 1e-12]}, 1e-9, write=False)


@pytest.mark.parametrize("write", [False, True])
def test_other_losses_need_a_higher_recipe_and_are_not_written_without(kept, write):
    text = kept.read_text()
    with pytest.raises(pytest.fail.Exception, match="raise RECIPE.*'optimizer.rule': 1"):
        check(kept, {"optimizer.rule": 1}, {"{}": [2.0, 1.1]}, 1e-9, write)
    assert kept.read_text() == text


def test_a_raised_recipe_is_written_on_demand(kept):
    with pytest.raises(pytest.fail.Exception, match="--write-golden"):
        check(kept, {"optimizer.rule": 2}, {"{}": [2.0, 1.1]}, 1e-9, write=False)
    check(kept, {"optimizer.rule": 2}, {"{}": [2.0, 1.1]}, 1e-9, write=True)
    check(kept, {"optimizer.rule": 2}, {"{}": [2.0, 1.1]}, 1e-9, write=False)


def test_new_files_and_new_cases_must_be_written(kept, tmp_path):
    for path, found in ((tmp_path / "new.json", {"{}": [1.0]}),
                        (kept, {"{}": [2.0, 1.0], "more": [3.0]})):
        with pytest.raises(pytest.fail.Exception, match="--write-golden"):
            check(path, {"optimizer.rule": 1}, found, 1e-9, write=False)
        check(path, {"optimizer.rule": 1}, found, 1e-9, write=True)
        check(path, {"optimizer.rule": 1}, found, 1e-9, write=False)


@pytest.mark.parametrize("name", tasks())
def test_a_task_computes_what_it_did(name, tiny_data, request):
    settings, found = run_of(name)
    numbers = {module: number for module, number in recipes(settings, task_named(name)).items()
               if not module.startswith("optimizer.")}
    check(GOLDEN / f"task_{name}.json", numbers, found, TOLERANCE["task"],
          request.config.getoption("--write-golden"))
