"""Whole training steps of each task in each mode of ARS2-Neo, over AdamW's: the overhead table."""

import itertools
from collections.abc import Callable, Iterator

import torch

from exp.bench import timing
from exp.bench.memory import peak_bytes
from exp.bench.timing import interleaved, summary
from exp.harness.build import Built, build
from exp.harness.config import load_settings
from exp.harness.task import task_named, tasks
from optimizer.parts.state import state_of, state_per_weight

BARE = "AdamW, bare loop"  # forward, backward and step alone: what our loop is measured against
MODES = {
    "AdamW": {"name": "adamw"},
    BARE: {"name": "adamw"},
    "Muon": {"name": "muon"},
    "Base": {"name": "ars2_neo", "k": 0},
    "Sync": {"name": "ars2_neo", "k": 1},
    "Lazy k=5": {"name": "ars2_neo", "k": 5},
    "AGA": {"name": "ars2_neo", "k": 10, "adaptive_sync": True},
    "AdaMuon": {"name": "adamuon"},
    "NorMuon": {"name": "normuon"},
    "RMSuon": {"name": "rmsuon"},
    "TR-Muon": {"name": "tr_muon"},
    "TR-Muon, slope": {"name": "tr_muon", "rule": "slope", "interval": 1},
    "TR-Muon, secant": {"name": "tr_muon", "rule": "secant", "interval": 10},
}
PAPERS_PRECISION = ('experiment.precision="tf32"',)  # of its GPU; a CPU knows no TF32
FULL_MODES = ("AdamW", BARE, "Muon", "Base", "Sync", "Lazy k=5", "AGA", "AdaMuon", "NorMuon")
CLAIMS = {"Base": 1.05, "Lazy k=5": 1.25, "AGA": 1.25, "Sync": 2.0,
          "AdaMuon": 1.05, "NorMuon": 1.1}  # paper, over AdamW
PERIOD = 5  # steps timed together: a whole lazy cycle
UNEVEN = {"Lazy k=5", "AGA"}  # whose steps differ: of the paper's models, others are timed singly
PATIENCE = 20.0  # seconds, with the paper's models


def measure(rounds: int, clock: str, device: torch.device, full: bool
            ) -> Iterator[tuple[str, dict[str, dict]]]:
    """Config after config, for each mode: ms per step, ratio to AdamW, claim, state, gradient
    evaluations per step, bytes that training needs at its worst moment (data apart).

    full: the paper's models, in the modes of its table. On two cores a round of ResNet-18 takes
    minutes, so that what is measured is handed out at once.
    """
    modes = FULL_MODES if full else tuple(MODES)
    for task in map(task_named, tasks()):
        path = task.published if full else task.config
        overrides = [f'experiment.device="{device.type}"', *(PAPERS_PRECISION if full else ())]
        settings = load_settings(path, overrides, task)
        runs = {mode: build({**settings, "optimizer": {**MODES[mode], "routing": "role"}},
                            task) for mode in modes}
        functions = {mode: (bare if mode == BARE else steps)(
            built, 1 if full and mode not in UNEVEN else PERIOD) for mode, built in runs.items()}
        memory = {mode: needed_bytes(functions[mode], built, device)
                  for mode, built in runs.items()}
        seconds = interleaved(functions, rounds, clock, PATIENCE if full else timing.PATIENCE)
        rows = summary({mode: [taken and taken / functions[mode].period for taken in of_mode]
                        for mode, of_mode in seconds.items()}, "AdamW")
        for mode, built in runs.items():
            rows[mode]["claim"] = CLAIMS.get(mode)
            rows[mode]["state_per_weight"] = state_per_weight(built.optimizer)
            rows[mode]["memory"] = memory[mode]
            rows[mode]["memory_ratio"] = memory[mode] / memory["AdamW"]
            taken = functions[mode].period * functions[mode].calls
            rows[mode]["evaluations"] = built.objective.gradient_evaluations / taken
        yield path.stem, rows


def needed_bytes(function: Callable[[], None], built: Built, device: torch.device) -> int:
    """Bytes at the worst moment of two calls, after a first one that leaves gradients and state.
    AGA syncs when it likes: in one cycle it may not."""
    function()
    return peak_bytes(lambda: (function(), function()), device) + resident_bytes(built)


def resident_bytes(built: Built) -> int:
    """Bytes of weights, buffers, gradients and optimizer state, as they stand between steps."""
    weights = list(built.model.parameters())
    tensors = [*weights, *built.model.buffers(), *state_of(built.optimizer),
               *(p.grad for p in weights if p.grad is not None)]
    return sum(tensor.nbytes for tensor in tensors)


def steps(built: Built, period: int = PERIOD) -> Callable[[], None]:
    """A function that trains `period` steps, as the scripts' loops do; `calls` counts its calls."""
    batches = endless(built)
    built.model.train()

    def run() -> None:
        for step in range(period * run.calls, period * (run.calls + 1)):
            built.schedule.set_lr(step)
            built.optimizer.step(built.objective.on(next(batches)))
        run.calls += 1

    run.calls, run.period = 0, period
    return run


def bare(built: Built, period: int = PERIOD) -> Callable[[], None]:
    """The same number of steps with nothing around them: batches made beforehand, no closure, no
    metrics, no schedule."""
    objective = built.objective
    batches = itertools.cycle(list(itertools.islice(endless(built), PERIOD)))
    built.model.train()

    def run() -> None:
        for _ in range(period):
            built.optimizer.zero_grad()
            with objective.autocast():
                loss, _ = objective.loss_fn(built.model, *next(batches))
            loss.backward()
            built.optimizer.step()
            objective.gradient_evaluations += 1
        run.calls += 1

    run.calls, run.period = 0, period
    return run


def endless(built: Built) -> Iterator[tuple[torch.Tensor, ...]]:
    """The training batches, epoch after epoch."""
    epoch = 0
    while True:
        yield from built.data.train.epoch(epoch)
        epoch += 1
