"""Overhead table: training steps of each task with ARS2-Neo's modes and others, over AdamW's."""

import itertools
from collections.abc import Callable, Iterator

import torch

from exp.bench import timing
from exp.bench.memory import peak_bytes
from exp.bench.timing import interleaved, summary
from exp.harness.build import Built, build
from exp.harness.config import load_settings
from exp.harness.facts import has_bfloat16
from exp.harness.task import task_named, tasks
from optimizer.parts.state import state_of, state_per_weight

BARE = "AdamW, bare loop"  # only forward, backward and step, to measure our loop's overhead
BF16 = "AdamW, bf16"  # autocast; its ratio to AdamW is that of the precisions
SAME_AS_ADAMW = (BARE, BF16)  # but for loop or precision
MODES: dict[str, dict] = {
    "AdamW": {"name": "adamw"},
    **dict.fromkeys(SAME_AS_ADAMW, {"name": "adamw"}),
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
PAPERS_PRECISION = ('experiment.precision="tf32"',)  # on the paper's GPU; without effect on a CPU
FULL_MODES = ("AdamW", BARE, "Muon", "Base", "Sync", "Lazy k=5", "AGA", "AdaMuon", "NorMuon")
CLAIMS = {"Base": 1.05, "Lazy k=5": 1.25, "AGA": 1.25, "Sync": 2.0,
          "AdaMuon": 1.05, "NorMuon": 1.1}  # paper, over AdamW
PERIOD = 5  # steps timed together: one lazy cycle
UNEVEN = {"Lazy k=5", "AGA"}  # modes whose steps differ; with `full`, others are timed step by step
PATIENCE = 20.0  # seconds, with `full`


def measure(rounds: int, clock: str, device: torch.device, full: bool
            ) -> Iterator[tuple[str, dict[str, dict]]]:
    """Yield (config, mode -> row) per config: ms per step, ratio to AdamW, claim, state, gradient
    evaluations per step, peak bytes of training without the data.

    full: the paper's models, in the modes of its table. On two cores a round of ResNet-18 takes
    minutes, hence a generator. BF16 only where the hardware has bfloat16 products.
    """
    modes = [mode for mode in (FULL_MODES if full else MODES)
             if mode != BF16 or has_bfloat16(device)]
    for task in map(task_named, tasks()):
        path = task.published if full else task.config
        overrides = [f'experiment.device="{device.type}"', *(PAPERS_PRECISION if full else ())]
        settings = load_settings(path, overrides, task)
        bf16 = {"experiment": {**settings["experiment"], "precision": "bf16"}}
        runs = {mode: build({**settings, "optimizer": {**MODES[mode], "routing": "role"},
                             **(bf16 if mode == BF16 else {})}, task) for mode in modes}
        functions = {mode: (Bare if mode == BARE else Steps)(
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
    """Peak bytes of two calls, after a first one that leaves gradients and state. Two, because AGA
    may not sync within one cycle."""
    def twice() -> None:
        function()
        function()

    function()
    return peak_bytes(twice, device) + resident_bytes(built)


def resident_bytes(built: Built) -> int:
    """Bytes of weights, buffers, gradients and optimizer state between steps."""
    weights = list(built.model.parameters())
    tensors = [*weights, *built.model.buffers(), *state_of(built.optimizer),
               *(p.grad for p in weights if p.grad is not None)]
    return sum(tensor.nbytes for tensor in tensors)


class Steps:
    """Trains `period` steps per call, as the training scripts do; `calls` counts the calls."""

    def __init__(self, built: Built, period: int = PERIOD) -> None:
        self.built, self.period, self.calls = built, period, 0
        self.batches = endless(built)
        built.model.train()

    def __call__(self) -> None:
        for step in range(self.period * self.calls, self.period * (self.calls + 1)):
            self.step(step)
        self.calls += 1

    def step(self, number: int) -> None:
        """Take one step; number: from 0."""
        self.built.schedule.set_lr(number)
        self.built.optimizer.step(self.built.objective.on(next(self.batches)))


class Bare(Steps):
    """The same number of steps without our loop: batches made beforehand, no closure, no metrics,
    no schedule."""

    def __init__(self, built: Built, period: int = PERIOD) -> None:
        super().__init__(built, period)
        self.batches = itertools.cycle(list(itertools.islice(endless(built), PERIOD)))

    def step(self, number: int) -> None:
        """Take one step."""
        built = self.built
        built.optimizer.zero_grad()
        with built.objective.autocast():
            loss, _ = built.objective.loss_fn(built.model, *next(self.batches))
        loss.backward()
        built.optimizer.step()
        built.objective.gradient_evaluations += 1


def endless(built: Built) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield training batches without end, epoch after epoch."""
    epoch = 0
    while True:
        yield from built.data.train.epoch(epoch)
        epoch += 1
