"""Real tensors for the experiments: a model of one of the tasks, trained for a few steps."""

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

# What `built` has used: task -> digest of its data, and module -> RECIPE.
USED: dict[str, dict] = {"data": {}, "recipes": {}}


def built(optimizer: dict, seed: int, task: str = "grokking", scale: str = "full",
          **changes: dict) -> Built:
    """The baseline config of a task at a scale of it, with another `[optimizer]` table, at a
    constant rate, on the CPU. changes: table -> keys that replace the config's."""
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
    """The first `count` training examples, or all, as the model takes them, not augmented:
    (inputs, targets)."""
    inputs, targets = (tensor[:count] for tensor in run.data.train.tensors)
    return (normalize(inputs) if inputs.dtype == torch.uint8 else inputs), targets


def evaluate(run: Built, inputs: Tensor, targets: Tensor) -> dict[str, float]:
    """The metrics of the run's task on these examples, where it is a classification task."""
    return run.task.evaluate(run.objective, SimpleNamespace(eval=(inputs, targets)))


def batches(run: Built) -> Iterator[tuple[Tensor, ...]]:
    """The training batches, epoch after epoch."""
    epoch = 0
    while True:
        yield from run.data.train.epoch(epoch)
        epoch += 1


def steps(run: Built, count: int) -> Iterator[int]:
    """Train; yield the number of each step after it is done."""
    for done, batch in zip(range(1, count + 1), batches(run), strict=False):
        run.optimizer.step(run.objective.on(batch))
        yield done


def training_loss(run: Built, count: int) -> float:
    """Mean loss (nats) over all training examples after `count` steps; infinite if it diverged."""
    for _ in steps(run, count):
        pass
    with torch.no_grad():
        loss = float(run.objective.loss_fn(run.model, *examples(run))[0])
    return loss if math.isfinite(loss) else math.inf


def matrices(model: nn.Module) -> dict[str, torch.Tensor]:
    """The hidden matrices and stacks of a model, by name."""
    roles = roles_of(model)
    return {name: p for name, p in model.named_parameters()
            if roles[name].role == "hidden" and p.ndim >= 2}
