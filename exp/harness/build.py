"""From checked settings to live objects: device, data, model, optimizer, schedule, objective."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from exp.harness.config import ConfigError, Task
from exp.harness.device import autocast, pick_device, seed_everything
from exp.harness.objective import LossFunction, Objective
from exp.harness.schedule import Schedule
from model import build_model
from optimizer import build_optimizer


@dataclass(frozen=True)
class Built:
    """Everything a training loop needs, made from one configuration."""

    device: torch.device
    data: Any
    model: nn.Module
    optimizer: Optimizer
    objective: Objective
    schedule: Schedule


def build(settings: dict, task: Task, loss_fn: LossFunction) -> Built:
    """Seed, then build in the order in which things depend on each other; nothing is written.

    Raises ConfigError for a value that a constructor refuses, DataError for missing data.
    """
    experiment = settings["experiment"]
    device = pick_device(experiment["device"])
    seed_everything(experiment["seed"])
    table = "data"
    try:
        data = task.data(**settings["data"], seed=experiment["seed"], device=device)
        table = "model"
        sizes = {name: getattr(data, name) for name in task.sizes}
        model = build_model(settings["model"], **sizes).to(device)
        table = "optimizer"
        optimizer = build_optimizer(settings["optimizer"], model)
        table = "schedule"
        schedule = Schedule(optimizer, experiment["epochs"], len(data.train),
                            **settings["schedule"], batch_size=settings["data"]["batch_size"])
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"[{table}] {error}") from error
    if experiment["compile"]:
        model.compile()
    objective = Objective(model, loss_fn, autocast(device, experiment["precision"]))
    return Built(device, data, model, optimizer, objective, schedule)
