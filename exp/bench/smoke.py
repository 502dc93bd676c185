"""Smoke test of a device, in some minutes, most of which torch.compile takes: optimizers and tasks
take a few steps there and on the CPU.

An optimizer's distance is ||w - w_cpu|| / ||w_cpu - w_0|| after STEPS steps. To tell errors from
rounding, the same distance is measured on the CPU with every gradient rounded to bfloat16; more
than FAR times that is a problem. Both are large for optimizers that take signs or eigenvectors of a
nearly singular statistic.

A task's distance is that of its evaluation loss from the CPU's in float32, relative to the loss:
the larger one of before and after a step of Sync on the same batch.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from exp.bench.training import MODES, SAME_AS_ADAMW, endless
from exp.harness.build import Built, build
from exp.harness.config import load_settings
from exp.harness.errors import NoCompiler
from exp.harness.facts import ROOT
from exp.harness.task import task_named
from exp.harness.task import tasks as task_names
from optimizer import available_optimizers, build_optimizer, is_wrapper, optimizer_class

STEPS = 4
FAR, LEAST = 4.0, 1e-3  # a distance above FAR * max(rounding, LEAST) is a problem
WAIT_STEPS = 5
# Row of a task -> overrides, and the largest distance that is no problem.
VARIANTS: dict[str, tuple[tuple[str, ...], float]] = {
    "fp32": ((), 2e-3), "tf32": (('experiment.precision="tf32"',), 2e-3),
    "bf16": (('experiment.precision="bf16"',), 5e-3),  # on a CPU 6e-4
    "compiled": (("experiment.compile=true",), 2e-3)}
NEO: dict[str, dict] = {
    "base": {"k": 0}, "sync": {"k": 1}, "lazy": {"k": 2}, "aga": {"k": 2, "adaptive_sync": True},
    "lazy, 8bit": {"k": 2, "shear_storage": "8bit"}, "svd": {"k": 0, "orthogonalizer": "svd"}}


class SmallNet(nn.Sequential):
    """images (batch, 3, 8, 8) -> logits (batch, 10): a convolution, a batch norm, two layers."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                         nn.Linear(8 * 36, 40), nn.ReLU(), nn.Linear(40, 10))

    def roles(self) -> dict[str, str]:
        """Parameter name -> "hidden", "head" or "vector"."""
        return {name: "vector" if p.ndim < 2 else "head" if name.startswith("6") else "hidden"
                for name, p in self.named_parameters()}


def candidates() -> dict[str, dict]:
    """Display name -> `[optimizer]` table: every file of optimizer/, wrappers around AdamW, and the
    modes of ARS2-Neo."""
    ours = [name for name in available_optimizers()
            if optimizer_class(name).__module__ == f"optimizer.{name}"]
    tables = {name: {"name": "adamw", name: {}} if is_wrapper(optimizer_class(name))
              else {"name": name} for name in ours}
    return tables | {f"ars2_neo, {mode}": {"name": "ars2_neo", **keys}
                     for mode, keys in NEO.items()}


def weights_after(settings: dict, device: torch.device, steps: int = STEPS,
                  change: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Optimizer]:
    """Return all weights (n,), float64 on the CPU, after `steps` steps on data that are the same on
    every device, and the optimizer. change: applied to every gradient."""
    torch.manual_seed(0)
    model = SmallNet().to(device)
    optimizer = build_optimizer(settings, model)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        images = torch.randn(32, 3, 8, 8, generator=generator).to(device)
        labels = torch.randint(10, (32,), generator=generator).to(device)

        def closure(images: Tensor = images, labels: Tensor = labels) -> Any:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            for p in model.parameters():
                if change is not None and p.grad is not None:
                    p.grad = change(p.grad)
            return loss.detach()

        optimizer.step(closure)
    return torch.cat([p.detach().double().cpu().flatten() for p in model.parameters()]), optimizer


def optimizers(device: torch.device) -> dict[str, dict]:
    """Per candidate: its distance, that of rounding, and "problem" if there is one."""
    rows = {}
    for name, settings in candidates().items():
        try:
            rows[name] = _compared(settings, device)
        except ImportError as error:
            rows[name] = {"left_out": str(error)}
        except Exception as error:  # every kind of error is a finding
            rows[name] = {"problem": f"{type(error).__name__}: {error}"}
    return rows


def _compared(settings: dict, device: torch.device) -> dict:
    cpu = torch.device("cpu")
    start, _ = weights_after({"name": "sgd"}, cpu, steps=0)
    try:
        exact, _ = weights_after(settings, cpu)
    except ValueError as error:  # the optimizer needs another kind of model
        return {"left_out": str(error)}
    rounded, _ = weights_after(settings, cpu, change=lambda g: g.bfloat16().to(g.dtype))
    ours, optimizer = weights_after(settings, device)
    moved = (exact - start).norm()
    row: dict[str, Any] = {"distance": float((ours - exact).norm() / moved),
                           "rounding": float((rounded - exact).norm() / moved)}
    strays = [key for state in optimizer.state.values() for key, value in state.items()
              if torch.is_tensor(value) and value.ndim and value.device.type != device.type]
    if strays:
        row["problem"] = f"state off the device: {', '.join(sorted(set(strays)))}"
    elif not row["distance"] <= FAR * max(row["rounding"], LEAST):
        row["problem"] = "far from the CPU's weights"
    return row | (_waits_of_steps(settings, device) if device.type == "cuda" else {})


def _waits_of_steps(settings: dict, device: torch.device) -> dict:
    model = SmallNet().to(device)
    optimizer = build_optimizer(settings, model)
    images, labels = torch.randn(32, 3, 8, 8, device=device), torch.arange(32, device=device) % 10

    def closure() -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        return loss.detach()

    return waits(lambda: optimizer.step(closure))


def tasks(device: torch.device) -> dict[str, dict]:
    """Per task at tiny scale: loss, evaluation and distance of each of VARIANTS, and on CUDA how
    often the steps of each mode made the host wait for the device."""
    rows = {}
    for name in task_names():
        for variant in VARIANTS:
            compared = partial(_compared_with_cpu, name, variant, device)
            rows[f"{name}, {variant}"] = _attempt(compared)
        modes = [mode for mode in MODES if mode not in SAME_AS_ADAMW]
        for mode in modes if device.type == "cuda" else ():
            rows[f"{name}, {mode}"] = _attempt(partial(_waits_of_training, name, mode, device))
    return rows


def _attempt(measure: Callable[[], dict]) -> dict:
    try:
        return measure()
    except NoCompiler as error:
        return {"left_out": str(error)}
    except Exception as error:  # as above
        return {"problem": f"{type(error).__name__}: {error}"}


def _built(name: str, mode: str, device: torch.device, overrides: tuple[str, ...] = ()) -> Built:
    task = task_named(name)
    settings = load_settings(task.config, [
        *task.scale("tiny"), f'experiment.device="{device.type}"', *overrides], task)
    data = _data(name, device)
    return build({**settings, "optimizer": {**MODES[mode], "routing": "role"}},
                 replace(task, data=lambda **_: data))


@cache
def _data(name: str, device: torch.device) -> Any:
    task = task_named(name)
    settings = load_settings(task.config, task.scale("tiny"), task)
    return task.data(**settings["data"], seed=settings["experiment"]["seed"], device=device)


@cache
def _reference(name: str) -> tuple[tuple[Tensor, ...], list[float]]:
    """A batch, and the evaluation losses of `_trained` on the CPU in float32."""
    run = _built(name, "Sync", torch.device("cpu"))
    batch = next(endless(run))
    return batch, [numbers["eval_loss"] for numbers in _trained(name, run, batch)]


def _trained(name: str, run: Built, batch: tuple[Tensor, ...]) -> list[dict[str, float]]:
    """Evaluations before and after a step on `batch`; the second one has the step's loss."""
    evaluate = partial(task_named(name).evaluate, run.objective, run.data)
    before = evaluate()
    run.model.train()
    loss = float(run.optimizer.step(run.objective.on(batch)))
    return [before, {"loss": loss, **evaluate()}]


def _compared_with_cpu(name: str, variant: str, device: torch.device) -> dict:
    (overrides, most), (batch, losses) = VARIANTS[variant], _reference(name)
    run = _built(name, "Sync", device, overrides)
    before, after = _trained(name, run, tuple(part.to(device) for part in batch))
    row: dict[str, Any] = {**after, "distance": max(
        abs(numbers["eval_loss"] / loss - 1)
        for numbers, loss in zip((before, after), losses, strict=True))}
    strange = [key for key, value in row.items() if not math.isfinite(value)]
    if strange:
        row["problem"] = f"not finite: {', '.join(strange)}"
    elif row["distance"] > most:
        row["problem"] = "far from the CPU's loss"
    return row


def _waits_of_training(name: str, mode: str, device: torch.device) -> dict:
    run = _built(name, mode, device)
    batches = endless(run)
    run.model.train()
    return waits(lambda: run.optimizer.step(run.objective.on(next(batches))))


def waits(step: Callable[[], Any]) -> dict:
    """How often a step makes the host wait for a CUDA device, and where in the code."""
    for _ in range(2):  # the first makes the state
        step()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(WAIT_STEPS):
                step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = [f"{warning.filename}:{warning.lineno}".removeprefix(f"{ROOT}/")
              for warning in caught if "synchron" in str(warning.message)]
    return {"waits": len(places) / WAIT_STEPS, "places": sorted(set(places))}


def measure(device: torch.device) -> dict[str, dict[str, dict]]:
    """Part -> subject -> measurements, with "problem" if something is broken and "left_out" if it
    cannot be tested."""
    return {"optimizers": optimizers(device), "tasks": tasks(device)}


def problems(results: dict[str, dict[str, dict]]) -> dict[str, str]:
    """Subject -> its problem, for those that have one."""
    return {subject: row["problem"] for rows in results.values() for subject, row in rows.items()
            if "problem" in row}
