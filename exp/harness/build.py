"""Build device, data, model, optimizer, schedule and objective from checked settings."""

import importlib.util
import inspect
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from data import DataError
from data.batches import Batches
from exp.harness.batch_norm import synchronized
from exp.harness.clipping import Clipping
from exp.harness.device import (
    autocast,
    pick_device,
    seed_everything,
    set_tf32,
    time_convolutions,
    twice_differentiable,
)
from exp.harness.distributed import (
    data_parallel,
    is_lost_peer,
    main_first,
    rank,
    size,
    together,
)
from exp.harness.errors import ConfigError, NoCompiler
from exp.harness.objective import Objective
from exp.harness.precheck import MemoryBound, require_fit, require_step
from exp.harness.schedule import Schedule
from exp.harness.task import Task
from model import build_model
from optimizer import build_optimizer, optimizer_class
from optimizer.parts.distributed.gathered import Gathered
from optimizer.parts.distributed.sharded import Sharded
from optimizer.parts.library import reason, wants_graph
from optimizer.parts.wrapper import Wrapper


@dataclass(frozen=True)
class Built:
    """Everything a training loop needs, built from one configuration."""

    task: Task
    settings: dict
    device: torch.device
    data: Any
    model: nn.Module
    optimizer: Optimizer
    objective: Objective
    schedule: Schedule


def build(settings: dict, task: Task) -> Built:
    """Seed, then build data, model, optimizer, schedule and objective; write no file of the run.

    Raises ConfigError for a value that a constructor or the trial step rejects, DataError for
    missing data.
    """
    experiment = settings["experiment"]
    _require_packages(experiment)
    task = with_smoothing(task, experiment["label_smoothing"])
    clipping = Clipping(experiment["clip_norm"]) if "clip_norm" in experiment else None
    device = pick_device(experiment["device"])
    if experiment["compile"]:
        _require_compiler(device)
    set_tf32(experiment["precision"] == "tf32")
    if device.type == "cuda":
        time_convolutions()
    seed_everything(experiment["seed"])
    graph = wants_graph(optimizer_class(settings["optimizer"]["name"]))
    forward = autocast(device, experiment["precision"])
    if graph:
        forward = twice_differentiable(forward)
    with together():
        data, model, optimizer, schedule = _parts(settings, task, device, forward, clipping)
    if graph and (experiment["compile"] or size() > 1):
        raise ConfigError(f"[optimizer] {settings['optimizer']['name']} differentiates gradients: "
                          "set experiment.compile = false and use one process")
    if experiment["compile"]:
        model.compile()
    whole = list(model.parameters())
    applied = data_parallel(model, experiment["sharding"])
    if size() > 1:
        shards = dict(zip(whole, model.parameters(), strict=True))
        optimizer = over_processes(optimizer, experiment["sharding"], shards)
    objective = Objective(model, task.loss_fn, forward, applied, experiment["accumulation"],
                          clipping, graph=graph)
    schedule.evaluations = lambda: objective.gradient_evaluations
    # Weights are equal on all processes; random numbers of training (dropout) differ.
    if rank():
        torch.manual_seed(experiment["seed"] + rank())
    return Built(task, settings, device, data, model, optimizer, objective, schedule)


def _require_packages(experiment: dict) -> None:
    wanted = {"logger": experiment["logger"]} if experiment["logger"] != "none" else {}
    wanted |= {"tensorboard": "tensorboard"} if experiment["tensorboard"] else {}
    for key, package in wanted.items():
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"[experiment] {key}: {package} is not installed: "
                              f"pip install {package}")


def _require_compiler(device: torch.device) -> None:
    """Raise NoCompiler without the C++ compiler, or on CUDA triton, that torch.compile calls."""
    default = "clang++" if sys.platform == "darwin" else "g++"
    compiler = os.environ.get("CXX", default)  # as torch._inductor.config
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise NoCompiler(f"[experiment] compile: there is no C++ compiler {compiler}: install it, "
                         "set CXX to another one, or set compile = false")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise NoCompiler("[experiment] compile: triton is not installed: pip install triton, or "
                         "set compile = false")


def with_smoothing(task: Task, share: float) -> Task:
    """Return `task` with label smoothing in its loss. Raises ConfigError if the loss takes none."""
    if share == 0:
        return task
    if "label_smoothing" not in inspect.signature(task.loss_fn).parameters:
        raise ConfigError(f"[experiment] label_smoothing must be 0: the loss of task {task.name} "
                          "does not support it")
    return replace(task, loss_fn=partial(task.loss_fn, label_smoothing=share))


def _parts(settings: dict, task: Task, device: torch.device, forward: Callable,
           clipping: Clipping | None) -> tuple:
    experiment = settings["experiment"]
    table = "data"
    try:
        with main_first():
            data = task.data(**settings["data"], seed=experiment["seed"], device=device)
        _require_work_for_all(data.train, experiment["accumulation"])
        _require_epochs(data.train, experiment["epochs"])
        table = "model"
        sizes = {name: getattr(data, name) for name in task.sizes}
        with MemoryBound(device):
            model = build_model(settings["model"], **sizes)
        model.to(device)
        require_fit(model, task, data.train)
        if size() > 1:
            model = synchronized(model, device)
        table = "optimizer"
        require_step(settings["optimizer"], model, task, data.train, forward,
                     experiment["accumulation"], clipping)
        optimizer = build_optimizer(settings["optimizer"], model, clipping)
        if size() > 1:
            _require_many_processes(optimizer, experiment)
        table = "schedule"
        schedule = Schedule(optimizer, experiment["epochs"], len(data.train),
                            **settings["schedule"], batch_size=settings["data"]["batch_size"])
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot read or write the data: {error}") from error
    except Exception as error:  # libraries raise their own exceptions for bad values
        if is_lost_peer(error):
            raise
        raise ConfigError(f"[{table}] {reason(error)}") from error
    return data, model, optimizer, schedule


def _require_work_for_all(train: Batches, accumulation: int) -> None:
    if accumulation > 1 and train.batch_size < accumulation * size():
        raise ValueError(f"batch_size {train.batch_size} is less than {accumulation} micro-batches "
                         f"x {size()} processes: decrease experiment.accumulation")
    last = train.examples % train.batch_size or train.batch_size
    if last < size():
        raise ValueError(f"the last batch of an epoch has {last} examples, fewer than {size()} "
                         "processes: set drop_last = true, change batch_size, or use fewer "
                         "processes")


def _require_epochs(train: Batches, epochs: int) -> None:
    if epochs > train.most_epochs:
        raise ValueError(f"one pass over the training set is {train.most_epochs} epochs: "
                         f"decrease [experiment] epochs, got {epochs}")


def _require_many_processes(optimizer: Optimizer, experiment: dict) -> None:
    innermost = optimizer
    while isinstance(innermost, Wrapper):
        innermost = innermost.base
    reason = getattr(innermost, "one_process", None)
    if reason is not None:
        raise ValueError(f"{type(innermost).__name__} works in one process only: {reason}")
    instruments = experiment["diagnostics"]
    if experiment["sharding"] != "none" and isinstance(instruments, list) and instruments:
        raise ValueError("the instruments in experiment.diagnostics need the state of every "
                         'parameter, which sharding splits: set experiment.sharding = "none" '
                         "or experiment.diagnostics = true")


def over_processes(optimizer: Optimizer, sharding: str, shards: dict) -> Optimizer:
    """Wrap the optimizer to shard its work (sharding "optimizer") or to gather the gradients and
    parameters of a sharded model ("model"); with "none" return it as it is.

    shards: full parameter -> this process's shard. Raises ConfigError if it cannot be sharded.
    """
    if sharding == "none":
        return optimizer
    try:
        if sharding == "optimizer":
            return Sharded(optimizer)
        params = [p for group in optimizer.param_groups for p in group["params"]]
        return Gathered(optimizer, [shards[p] for p in params])
    except ValueError as error:
        raise ConfigError(f"[optimizer] {error}") from error
