"""Models of the tasks, trained for a few steps, for the experiments on statements."""

import math
from collections.abc import Iterator
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from data.cifar10 import normalize
from exp.harness.build import Built, build
from exp.harness.config import complete
from exp.harness.recipes import recipes
from exp.harness.task import task_named
from exp.harness.toml import read_toml
from exp.jobs.finished import data_digest
from optimizer.parts.roles import roles_of

# Provenance recorded by `built`: task -> digest of its data, and module -> RECIPE.
USED: dict[str, dict] = {"data": {}, "recipes": {}}


def built(optimizer: dict, seed: int, task: str = "grokking", scale: str = "full",
          **changes: dict) -> Built:
    """Build a task's baseline config at one of its scales on the CPU, with another `[optimizer]`
    table and a constant learning rate. changes: table -> keys that replace the config's."""
    of_task = task_named(task)
    settings = read_toml(of_task.config)
    settings["experiment"] |= {"seed": seed, "device": "cpu"}
    settings.pop("schedule", None)
    settings["optimizer"] = optimizer
    for tables in (of_task.scales[scale], changes):
        for table, keys in tables.items():
            settings[table] |= keys
    settings = complete(settings, of_task)
    run = build(settings, of_task)
    USED["data"][task] = data_digest({"data": run.data.digest})
    USED["recipes"] |= recipes(settings, of_task)
    return run


def examples(run: Built, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Return (inputs, targets) of the first `count` training examples, default all, in the form of
    the model's input and without augmentation."""
    inputs, targets = (tensor[:count] for tensor in run.data.train.tensors)
    return (normalize(inputs) if inputs.dtype == torch.uint8 else inputs), targets


def evaluate(run: Built, inputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Return the metrics of the run's task on these examples; for classification tasks only."""
    return run.task.evaluate(run.objective, SimpleNamespace(eval=(inputs, targets)))


def batches(run: Built) -> Iterator[tuple[Tensor, ...]]:
    """Yield training batches, epoch after epoch, without end."""
    epoch = 0
    while True:
        yield from run.data.train.epoch(epoch)
        epoch += 1


def steps(run: Built, count: int) -> Iterator[int]:
    """Train for `count` steps; yield the number of each step (from 1) after it."""
    for done, batch in zip(range(1, count + 1), batches(run), strict=False):
        run.optimizer.step(run.objective.on(batch))
        yield done


def training_loss(run: Built, count: int) -> float:
    """Train for `count` steps; return the mean loss (nats) over all training examples, infinity if
    it diverged."""
    for _ in steps(run, count):
        pass
    with torch.no_grad():
        loss = float(run.objective.loss_fn(run.model, *examples(run))[0])
    return loss if math.isfinite(loss) else math.inf


def matrices(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the hidden matrices and stacks of a model by parameter name."""
    roles = roles_of(model)
    return {name: p for name, p in model.named_parameters()
            if roles[name].role == "hidden" and p.ndim >= 2}
