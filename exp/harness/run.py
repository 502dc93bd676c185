"""One training run: state of its loop, metrics, checkpoints and final status."""

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch

from data.batches import Batches
from exp.harness.build import Built
from exp.harness.checkpoint import Checkpoints, Position
from exp.harness.config import Experiment
from exp.harness.device import keep_freed_memory, peak_memory, restart_peak_memory, wait_for
from exp.harness.diagnostics import Instruments
from exp.harness.distributed import (
    DelayedMax,
    any_process,
    is_main,
    load_whole,
    size,
    together,
    whole,
)
from exp.harness.facts import run_facts
from exp.harness.folder import RunFolder, epochs_of
from exp.harness.interrupts import Interrupts
from exp.harness.limits import Limits
from exp.harness.loggers import Loggers
from exp.harness.plots import plot_curves, plot_diagnostics
from exp.harness.progress import Progress, final_table
from optimizer.parts.base import evaluated_weights, set_mode
from optimizer.parts.state import has_nan

STOP, NOT_FINITE = 1, 2  # signals, combined over processes by their maximum


class Diverged(Exception):
    """A loss or metric is not finite: the run is recorded as diverged."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, raised between two steps after the checkpoint has been written."""


class Run:
    """Context manager that keeps the state of a run's loop and writes its files:

        with Run(folder, built) as run:
            for _ in run.epochs():
                for batch in run.batches(built.data.train):
                    built.schedule.set_lr(run.step)
                    built.optimizer.step(built.objective.on(batch))
                run.log(evaluate(...))
            run.test(lambda: evaluate(...))  # where there is a test split

    best.pt and `stop_at` use the task's primary metric. The first epoch that reaches each of the
    task's milestones is recorded. A run that completes, is interrupted or diverges writes
    summary.json and curves.png when the block is left.
    Only the main process writes files. All processes stop at the same step.
    Raises ConfigError on entry if the checkpoint belongs to another configuration or is past the
    end of this run.
    """

    def __init__(self, folder: RunFolder, built: Built) -> None:
        self.folder, self.built = folder, built
        self.task, self.settings = built.task, built.settings
        self.experiment = Experiment(**built.settings["experiment"])
        self.model, self.optimizer, self.objective = built.model, built.optimizer, built.objective
        self.at = Position(milestones=dict.fromkeys(self.task.milestones))
        self.device = built.device
        self.limits = Limits(self.experiment, self.task.primary)
        self.interrupts = Interrupts()
        self.signals = DelayedMax()
        self.started_at = time.perf_counter()
        self.seconds_before = 0.0
        self.last_line: dict[str, Any] = {}
        self.tested: dict[str, float] = {}
        self.peak_memory = 0
        asked = self.experiment.diagnostics
        self.instruments = Instruments(() if isinstance(asked, bool) else asked, self.model,
                                       self.optimizer, self.objective)
        self.checkpoints = Checkpoints(folder, built, self.instruments)
        self.loggers: Loggers  # created on entry
        self.progress: Progress | None = None

    @property
    def step(self) -> int:
        """Number of completed optimizer steps."""
        return self.at.step

    def __enter__(self) -> "Run":
        with together():
            if is_main():
                self.folder.lock()
        try:
            self._begin()
        except BaseException:
            self.folder.unlock()
            raise
        self.interrupts.install()
        return self

    def _begin(self) -> None:
        keep_freed_memory()  # only now: what loading the data freed goes to the system
        record = ""
        resumed = self.checkpoints.load()
        if resumed is not None:
            self.at, self.seconds_before, record = resumed
            self.limits.resume(epochs_of(record), self.at.batch)
        if is_main():
            facts = run_facts(self.built)
            self.folder.begin(self.settings, facts, record)
            self.last_line = (self.folder.metrics() or [{}])[-1]
        tensorboard = self.experiment.tensorboard and is_main()
        self.loggers = Loggers(
            self.folder.path, self.settings, tensorboard=tensorboard, first_epoch=self.at.epoch + 1,
            first_evaluation=self.objective.gradient_evaluations + 1,
            logger=self.experiment.logger if is_main() else "none")

    def __exit__(self, kind: type | None, error: Exception | None, trace: Any) -> None:
        if self.progress is not None:
            self.progress.close()
        with ExitStack() as afterwards:  # the last one first
            afterwards.callback(self.interrupts.remove)
            afterwards.callback(self.folder.unlock)
            afterwards.callback(self.loggers.close)
            self._end(kind)
        if kind is torch.linalg.LinAlgError:  # a decomposition met non-finite values
            raise Diverged(f"{error} in epoch {self.at.epoch + 1}, step {self.at.step}") from error

    def _end(self, kind: type | None) -> None:
        status = {None: "completed", Interrupted: "interrupted", KeyboardInterrupt: "interrupted",
                  Diverged: "diverged", torch.linalg.LinAlgError: "diverged"}.get(kind)
        if status is not None:
            if status == "completed":
                self._checkpoint()
            elif status == "diverged" and (kind is Diverged or size() == 1):
                # The best weights are of an earlier, finite epoch. Gathering shards needs all
                # processes, but a decomposition may have failed in one of them only.
                self.checkpoints.save_best(self.at)
            if is_main():
                self._summarize(status)

    def epochs(self) -> Iterator[int]:
        """Yield the number of each remaining epoch, 1-based."""
        while not self.limits.ended:
            self.model.train()
            set_mode(self.optimizer, "train")
            self.objective.restore_statistics()
            yield self.at.epoch + 1

    def batches(self, train: Batches) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield the remaining batches of the epoch. The loop body takes one step per batch.

        Raises Interrupted after a signal, Diverged when a step's loss is found not finite.
        """
        if self.at.batch == 0:
            self.objective.reset()
        if self.progress is None:
            epochs = self.experiment.epochs
            self.progress = Progress(epochs * len(train), epochs, self.at.step,
                                     self.task.primary)
        self.instruments.every = self.experiment.diagnostics_every or len(train)
        self.instruments.steps = self.at.step
        restart_peak_memory(self.device)
        started = time.perf_counter() - self.at.seconds - self.instruments.seconds
        for batch in train.epoch(self.at.epoch, start=self.at.batch):
            yield batch
            self.at.batch += 1
            self.at.step += 1
            self.at.seconds = time.perf_counter() - started - self.instruments.seconds
            signal = STOP if self.interrupts.pending else 0
            if self.progress.is_due():
                loss = float(self.objective.last_loss)
                self.progress.show(self.at.epoch + 1, self.at.step, loss)
                signal = signal if math.isfinite(loss) else NOT_FINITE
            self._act_on(self.signals.all_max(signal))
        wait_for(self.device)
        self.at.seconds = time.perf_counter() - started - self.instruments.seconds
        self.peak_memory = peak_memory(self.device)  # before evaluation, whose batches are larger
        set_mode(self.optimizer, "eval")
        if evaluated_weights(self.optimizer) is not None:  # an average, say
            self.objective.average_statistics(train.epoch(self.at.epoch))

    def log(self, evaluation: dict[str, float]) -> None:
        """End the epoch: append a line to metrics.jsonl, update the best epoch and the milestones,
        and save a checkpoint if one is due. evaluation: the result of the task's `evaluate`.

        Raises Diverged for a value that is not finite, Interrupted after a signal.
        """
        self.at.epoch, self.at.batch = self.at.epoch + 1, 0
        line = {
            "epoch": self.at.epoch, "step": self.at.step,
            "gradient_evaluations": self.objective.gradient_evaluations,
            **self.objective.means(), **evaluation,
            "lr": self.optimizer.param_groups[0]["lr"], "seconds": round(self.at.seconds, 3),
        }
        if (averaged := evaluated_weights(self.optimizer)) is not None:
            line["evaluated_weights"] = averaged
        if self.experiment.diagnostics is not False:
            numbers = {**getattr(self.optimizer, "diagnostics", {}), **self.instruments.take()}
            line |= {"diagnostics": numbers} if numbers else {}
        line["peak_memory_bytes"] = self.peak_memory
        if is_main():
            self.folder.append_metrics(line)
        self.last_line = line
        if self.progress is not None:
            self.progress.evaluated(line)
        self.loggers.write(line)
        numbers = {key: value for key, value in line.items() if isinstance(value, float)}
        if any_process(has_nan(self.optimizer)):
            numbers["the state of the optimizer"] = math.nan
        self._require_finite(self.at.epoch, numbers)
        self._update_best(line)
        self.limits.follow(line)
        for name, (metric, threshold) in self.task.milestones.items():
            reached = self.task.metric(metric).reaches(line[metric], threshold)
            if self.at.milestones[name] is None and reached:
                self.at.milestones[name] = self.at.epoch
        due = self.checkpoints.is_due()
        pending = self.signals.all_max(STOP if self.interrupts.pending else 0)
        if due or pending:
            self._checkpoint()
        if pending and not self.limits.ended:
            raise Interrupted

    def test(self, evaluate: Callable[[], dict[str, float]]) -> None:
        """Evaluate the best epoch's weights on the test split, unless `experiment.test` is false.
        The summary gets the metrics as "test_..."; the last epoch's weights are restored."""
        if not self.experiment.test:
            return
        last = copy.deepcopy(whole(self.model.state_dict()))
        load_whole(self.model, self.checkpoints.best())
        self.tested = {f"test_{k.removeprefix('eval_')}": v for k, v in evaluate().items()}
        load_whole(self.model, last)

    def _act_on(self, signal: int) -> None:
        """Raise Interrupted or Diverged, between two steps, for the signal of any process."""
        if signal == NOT_FINITE:
            self._require_finite(self.at.epoch + 1,
                                 {"training loss": float(self.objective.last_loss)})
        elif signal == STOP:
            self._checkpoint()
            raise Interrupted

    def _update_best(self, line: dict) -> None:
        metric = self.task.primary
        value, best = line[metric.name], self.at.best.get(metric.name)
        if best is None or metric.is_better(value, best):
            self.at.best = {"epoch": self.at.epoch, metric.name: value}
            self.checkpoints.keep_best()

    def _require_finite(self, epoch: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise Diverged(f"{name} is {value} in epoch {epoch}, step {self.at.step}")

    def _checkpoint(self) -> None:
        self.checkpoints.save(self.at, self._wall_seconds())

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
        self.loggers.finish(final)
        if lines := self.folder.metrics():
            self._draw(lines)
        print(final_table(summary, self.folder.path))

    def _draw(self, lines: list[dict]) -> None:
        """Draw the figures from metrics.jsonl; print a warning if that fails."""
        folder = self.folder.path
        title = f"{folder.parent.name} · seed {self.experiment.seed}"
        try:
            plot_curves(folder / "curves.png", lines, self.task.metrics, self.at.milestones, title)
            plot_diagnostics(folder / "diagnostics.png", lines)
        except Exception as error:  # the run has ended and its record is complete
            print(f"warning: cannot draw the figures in {folder}: {type(error).__name__}: {error}",
                  file=sys.stderr)

    def _wall_seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started_at
