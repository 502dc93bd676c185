"""One training run: where it stands, its record, its checkpoints, its end."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from data.batches import Batches
from exp.harness.board import Board
from exp.harness.config import Experiment
from exp.harness.diagnostics import Instruments
from exp.harness.distributed import (
    Consensus,
    from_main,
    is_main,
    load_whole,
    together,
    whole,
)
from exp.harness.errors import ConfigError
from exp.harness.facts import run_facts
from exp.harness.folder import RunFolder
from exp.harness.interrupts import Interrupts
from exp.harness.objective import Objective, rng_state, set_rng_state
from exp.harness.plots import plot_curves, plot_diagnostics
from exp.harness.progress import Progress, final_table

CHECKPOINT_SECONDS = 10.0  # at least so long between checkpoints: short epochs cost nothing
MAY_CHANGE_ON_RESUME = ("epochs", "device", "tensorboard", "stop_at", "max_evaluations", "sharding")
INTERRUPTED, DIVERGED = 1, 2  # what one process may have to say to all


class Diverged(Exception):
    """A loss or metric is not finite: the run is recorded as diverged."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, noticed between two steps: the checkpoint is written already."""


@dataclass
class Position:
    """How far a run has come; what a checkpoint restores besides tensors."""

    epoch: int = 0  # finished epochs
    batch: int = 0  # finished batches of the epoch after these
    step: int = 0
    seconds: float = 0.0  # of training: neither evaluation nor writing
    best: dict[str, float] = field(default_factory=dict)
    milestones: dict[str, int | None] = field(default_factory=dict)


class Run:
    """The record of a run and the bookkeeping of its loop:

        with Run(folder, settings, ..., metric="eval_accuracy", mode="max") as run:
            for _ in run.epochs():
                for batch in run.batches(train):
                    schedule.set_lr(run.step)
                    optimizer.step(objective.on(batch))
                run.log(evaluate(...))
            run.test(lambda: evaluate(...))  # where there is a split that chose nothing

    metric, mode: what best.pt and `stop_at` go by, "max" or "min" is better.
    milestones: name -> (metric, threshold); the first epoch that reaches it is recorded.
    Leaving the block writes summary.json and curves.png, however it is left.
    With several processes the main one writes, and all of them stop at the same step.
    Raises ConfigError on entry for a checkpoint of another configuration.
    """

    def __init__(
        self, folder: RunFolder, settings: dict, model: nn.Module, optimizer: Optimizer,
        objective: Objective, *, metric: str, mode: Literal["max", "min"],
        milestones: dict[str, tuple[str, float]] | None = None,
    ) -> None:
        self.folder, self.settings = folder, settings
        self.experiment = Experiment(**settings["experiment"])
        self.model, self.optimizer, self.objective = model, optimizer, objective
        self.metric, self.mode, self.thresholds = metric, mode, milestones or {}
        self.at = Position(milestones=dict.fromkeys(self.thresholds))
        self.device = next(model.parameters()).device
        self.stopped = False
        self.interrupts = Interrupts()
        self.consensus = Consensus()
        self.best_weights: dict | None = None
        self.saved_at = self.started_at = time.perf_counter()
        self.seconds_before = 0.0
        self.last_line: dict[str, Any] = {}
        self.tested: dict[str, float] = {}
        asked = self.experiment.diagnostics
        self.instruments = Instruments(() if isinstance(asked, bool) else asked, model, optimizer,
                                       objective)
        self.board = self.progress = None  # made when it is known where the run begins

    @property
    def step(self) -> int:
        """Finished optimizer steps."""
        return self.at.step

    def __enter__(self) -> "Run":
        with together():
            state = self.folder.checkpoint() if is_main() else None
        state = from_main(lambda: state)
        if state is not None:
            with together():
                self._restore(state)
        if is_main():
            facts = run_facts(self.model, self.optimizer, self.device)
            self.folder.begin(self.settings, facts, self.at.epoch)
            self.last_line = (self.folder.metrics() or [{}])[-1]
        wanted = self.experiment.tensorboard and is_main()
        self.board = Board(self.folder.path, wanted, self.at.epoch + 1)
        self.interrupts.install()
        return self

    def __exit__(self, kind: type | None, error: Exception | None, trace: Any) -> None:
        self.interrupts.remove()
        if self.progress is not None:
            self.progress.close()
        status = {None: "completed", Interrupted: "interrupted", KeyboardInterrupt: "interrupted",
                  Diverged: "diverged"}.get(kind)
        if status is not None:
            if status == "completed":
                self._checkpoint()
            if is_main():
                self._summarize(status)
        self.board.close()

    def epochs(self) -> Iterator[int]:
        """Yield each epoch that is left, 1-based."""
        while self.at.epoch < self.experiment.epochs and not self.stopped:
            self.model.train()
            yield self.at.epoch + 1

    def batches(self, train: Batches) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield what is left of the epoch's batches; the loop body is one step each."""
        if self.at.batch == 0:
            self.objective.reset()
        if self.progress is None:
            epochs = self.experiment.epochs
            self.progress = Progress(epochs * len(train), epochs, self.at.step)
        self.instruments.every = self.experiment.diagnostics_every or len(train)
        self.instruments.steps = self.at.step
        started = time.perf_counter() - self.at.seconds - self.instruments.seconds
        for batch in train.epoch(self.at.epoch, start=self.at.batch):
            yield batch
            self.at.batch += 1
            self.at.step += 1
            self.at.seconds = time.perf_counter() - started - self.instruments.seconds
            signal = INTERRUPTED if self.interrupts.pending else 0
            if self.progress.is_due():
                loss = float(self.objective.last_loss)
                self.progress.show(self.at.epoch + 1, self.at.step, loss)
                signal = signal if math.isfinite(loss) else DIVERGED
            self._heed(self.consensus.hear(signal))
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.at.seconds = time.perf_counter() - started - self.instruments.seconds

    def log(self, evaluation: dict[str, float]) -> None:
        """End the epoch: one line of metrics.jsonl, best so far, milestones, checkpoint."""
        self.at.epoch, self.at.batch = self.at.epoch + 1, 0
        line = {
            "epoch": self.at.epoch, "step": self.at.step,
            "gradient_evaluations": self.objective.gradient_evaluations,
            **self.objective.means(), **evaluation,
            "lr": self.optimizer.param_groups[0]["lr"], "seconds": round(self.at.seconds, 3),
        }
        if self.experiment.diagnostics is not False:
            numbers = {**getattr(self.optimizer, "diagnostics", {}), **self.instruments.take()}
            line |= {"diagnostics": numbers} if numbers else {}
        line["peak_memory_bytes"] = _peak_memory(self.device)
        if is_main():
            self.folder.append_metrics(line)
        self.last_line = line
        self.progress.evaluated(line)
        self.board.write(line)
        self._require_finite(self.at.epoch, {k: v for k, v in line.items() if isinstance(v, float)})
        self._update_best(line)
        for name, (metric, threshold) in self.thresholds.items():
            if self.at.milestones[name] is None and line[metric] >= threshold:
                self.at.milestones[name] = self.at.epoch
        due = from_main(lambda: time.perf_counter() - self.saved_at > CHECKPOINT_SECONDS)
        pending = self.consensus.hear(INTERRUPTED if self.interrupts.pending else 0)
        if due or pending:
            self._checkpoint()
        if pending and self.at.epoch < self.experiment.epochs and not self.stopped:
            raise Interrupted

    def _heed(self, signal: int) -> None:
        """Act on what some process has found, between two steps."""
        if signal == DIVERGED:
            self._require_finite(self.at.epoch + 1,
                                 {"training loss": float(self.objective.last_loss)})
        elif signal == INTERRUPTED:
            self._checkpoint()
            raise Interrupted

    def test(self, evaluate: Callable[[], dict[str, float]]) -> None:
        """Evaluate the best epoch's weights once, on data that had no part in choosing it."""
        last = copy.deepcopy(whole(self.model.state_dict()))
        load_whole(self.model, self._best_state())
        self.tested = {f"test_{k.removeprefix('eval_')}": v for k, v in evaluate().items()}
        load_whole(self.model, last)

    def _best_state(self) -> dict:
        if self.best_weights is not None:
            return whole(self.best_weights)
        return from_main(lambda: self.folder.load_checkpoint("best.pt")["model"])

    def _update_best(self, line: dict) -> None:
        value, best = line[self.metric], self.at.best.get(self.metric)
        sign = 1 if self.mode == "max" else -1
        if best is None or sign * value > sign * best:
            self.at.best = {"epoch": self.at.epoch, self.metric: value}
            self.best_weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        target = self.experiment.stop_at
        self.stopped = target is not None and sign * value >= sign * target or self._is_spent()

    def _is_spent(self) -> bool:
        limit = self.experiment.max_evaluations
        return limit is not None and self.objective.gradient_evaluations >= limit

    def _require_finite(self, epoch: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise Diverged(f"{name} is {value} in epoch {epoch}, step {self.at.step}")

    def _checkpoint(self) -> None:
        best = whole(self.best_weights) if self.best_weights is not None else None
        state = {
            "settings": self.settings, "position": asdict(self.at),
            "stopped": self.stopped, "model": whole(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(), "objective": self.objective.state_dict(),
            "rng": rng_state(self.device), "wall_seconds": self._wall_seconds(),
        }
        if is_main():
            if best is not None:
                self.folder.save_checkpoint("best.pt", {"model": best, **self.at.best})
            self.folder.save_checkpoint("latest.pt", state)
        self.best_weights = None
        self.saved_at = time.perf_counter()

    def _restore(self, state: dict) -> None:
        changed = [f"[{table}] {key}: {was.get(key)!r} -> {now.get(key)!r}"
                   for table, now in self.settings.items() for was in [state["settings"][table]]
                   for key in {**was, **now}
                   if was.get(key) != now.get(key) and key not in MAY_CHANGE_ON_RESUME]
        if changed:
            raise ConfigError("--resume: the checkpoint was made with other settings:\n"
                              + "\n".join(changed))
        load_whole(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.objective.load_state_dict(state["objective"])
        if is_main():
            set_rng_state(state["rng"], self.device)
        self.at = Position(**state["position"])
        self.seconds_before = state["wall_seconds"]
        before, now = state["settings"]["experiment"], self.settings["experiment"]
        self.stopped = state["stopped"] and all(before.get(key) == now.get(key)
                                                for key in ("stop_at", "max_evaluations"))

    def _summarize(self, status: str) -> None:
        final = {k: v for k, v in self.last_line.items() if k not in ("diagnostics", "epoch")}
        summary = {
            "task": self.experiment.task, "optimizer": self.settings["optimizer"]["name"],
            "seed": self.experiment.seed, "status": status, "epochs": self.at.epoch,
            "best": {**self.at.best, **self.tested}, "final": final,
            "milestones": self.at.milestones,
            "wall_seconds": round(self._wall_seconds(), 1),
        }
        self.folder.write_json("summary.json", summary)
        lines = self.folder.metrics()
        if lines:
            plot_curves(self.folder.path / "curves.png", lines, self.metric, self.at.milestones,
                        f"{self.folder.path.parent.name} · seed {self.experiment.seed}")
            plot_diagnostics(self.folder.path / "diagnostics.png", lines)
        print(final_table(summary, self.folder.path))

    def _wall_seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started_at


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
