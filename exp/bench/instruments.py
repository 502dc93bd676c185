"""Cost of each instrument of `[experiment] diagnostics`, as a share of a training step."""

from collections.abc import Callable
from functools import partial
from typing import get_args

import torch

from exp.bench.timing import interleaved, summary
from exp.bench.training import endless
from exp.harness.build import Built, build
from exp.harness.config import Instrument, load_settings
from exp.harness.diagnostics import Instruments
from exp.harness.task import task_named, tasks

REFERENCE = "a training step"


def measure(rounds: int, clock: str, device: torch.device) -> dict[str, dict]:
    """Per configuration: times of a training step and of one measurement of each instrument, and
    their ratio. "per_epoch": share of the training time if it measures once per epoch (default)."""
    results = {}
    for task in map(task_named, tasks()):
        path = task.config
        settings = load_settings(path, [f'experiment.device="{device.type}"'], task)
        built = build(settings, task)
        rows = summary(interleaved(functions(built), rounds, clock), REFERENCE)
        for name in get_args(Instrument):
            rows[name]["per_epoch"] = rows[name]["ratio"] / len(built.data.train)
        results[path.stem] = rows
    return results


def functions(built: Built) -> dict:
    """Name -> function: a training step, and one measurement of each instrument."""
    batches = endless(built)
    built.model.train()

    def step() -> None:
        built.optimizer.step(built.objective.on(next(batches)))

    result: dict[str, Callable[[], None]] = {REFERENCE: step}
    for name in get_args(Instrument):
        instruments = Instruments((name,), built.model, built.optimizer, built.objective)
        result[name] = partial(measurement, instruments)
        instruments.every = 10**9  # not in the timed steps
    return result


def measurement(instruments: Instruments) -> None:
    """Do the work of the hooks around one step. A thousandth of the weights stands for the update,
    because the singular values of a zero matrix are computed too fast."""
    instruments.before = {name: p.detach() * 0.999 for name, p in instruments.matrices.items()}
    instruments._after()
    instruments.take()
