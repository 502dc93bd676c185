"""Optional loggers of a run: TensorBoard event files, Weights & Biases, Trackio."""

import importlib
import sys
from pathlib import Path
from typing import Any

EVALUATIONS = "gradient_evaluations"


class Loggers:
    """Logs the settings and the numbers of each metrics line, diagnostics included.

    tensorboard: write event files to the run folder, with every number over epochs, "train_..." and
    "eval_..." also over gradient evaluations, and the hyperparameters. logger: "wandb" or
    "trackio", a run of the project "ars" under the folder's name; "none" for neither.
    first_epoch, first_evaluation: the next ones. TensorBoard discards older events from these on,
    which a resumed run writes again; a folder has one such limit, hence two of them.
    """

    def __init__(self, folder: Path, settings: dict, *, tensorboard: bool, first_epoch: int,
                 first_evaluation: int, logger: str) -> None:
        self.writer: Any = None  # over epochs
        self.over_evaluations: Any = None
        self.tracker: Any = None
        self.settings = flat(settings)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            events = folder / "tensorboard"
            self.writer = SummaryWriter(str(events), purge_step=first_epoch)
            self.over_evaluations = SummaryWriter(str(events / "over_evaluations"),
                                                  purge_step=first_evaluation)
        if logger != "none":
            self.tracker = importlib.import_module(logger)
            self._track("init", project="ars", name=f"{folder.parent.name}/{folder.name}",
                        config=self.settings)

    def write(self, line: dict) -> None:
        """Add one line of metrics.jsonl."""
        nested = {f"diagnostics/{k}": v for k, v in line.get("diagnostics", {}).items()}
        numbers = {name: value for name, value in {**line, **nested}.items()
                   if isinstance(value, int | float)}
        if self.tracker is not None:
            self._track("log", numbers)
        for name, value in numbers.items() if self.writer is not None else ():
            if name != "epoch":
                self.writer.add_scalar(name, value, line["epoch"])
            if name.startswith(("train_", "eval_")):
                self.over_evaluations.add_scalar(f"over_evaluations/{name}", value,
                                                 line[EVALUATIONS])

    def finish(self, final: dict) -> None:
        """Add the hyperparameters with the last values of the task's metrics."""
        if self.writer is None:
            return
        from torch.utils.tensorboard.summary import hparams

        last = {f"final/{name}": value for name, value in final.items()
                if name.startswith("eval_") and isinstance(value, int | float)}
        for summary in hparams(self.settings, last) if last else ():
            self.writer.file_writer.add_summary(summary)
        for name, value in last.items():
            self.writer.add_scalar(name, value)

    def close(self) -> None:
        """Flush and close."""
        if self.writer is not None:
            self.writer.close()
            self.over_evaluations.close()
        if self.tracker is not None:
            self._track("finish")

    def _track(self, method: str, *arguments: Any, **options: Any) -> None:
        """Call the logger. If it fails, for example without a network, stop using it."""
        try:
            getattr(self.tracker, method)(*arguments, **options)
        except Exception as error:
            print(f"warning: {self.tracker.__name__}.{method} failed, logging to it stops: "
                  f"{type(error).__name__}: {error}", file=sys.stderr)
            self.tracker = None


def flat(settings: dict, prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested tables as "table.key" -> value; arrays as text."""
    values: dict[str, bool | int | float | str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[prefix + key] = value if isinstance(value, int | float | str) else str(value)
    return values
