"""Progress of a run: a bar on a terminal, lines in a log file, a final table."""

import sys
import time
from pathlib import Path

from tqdm import tqdm

from exp.harness.distributed import is_main
from exp.harness.task import Metric

BAR_SECONDS = 0.2  # between updates on a terminal
LINE_SECONDS = 10.0  # between lines in a log file


class Progress:
    """Shows epoch, loss, last value of `metric` and time left over all steps of a run.

    A bar on a terminal, otherwise a line every ten seconds. Only the main process shows anything.
    """

    def __init__(self, steps: int, epochs: int, step: int, metric: Metric) -> None:
        self.steps, self.epochs, self.first_step = steps, epochs, step
        self.started = self.shown = time.perf_counter()
        self.metric, self.evaluation = metric, ""
        self.bar = None
        if is_main() and sys.stderr.isatty():
            self.bar = tqdm(total=steps, initial=step, dynamic_ncols=True, leave=False,
                            bar_format="{desc} {percentage:3.0f}% {remaining} left |{bar}|")

    def is_due(self) -> bool:
        """Whether to show progress now; the loss is copied from the device only then."""
        pause = LINE_SECONDS if self.bar is None else BAR_SECONDS
        return is_main() and time.perf_counter() - self.shown >= pause

    def evaluated(self, line: dict) -> None:
        """Remember the primary metric of a finished epoch."""
        self.evaluation = f"{self.metric.label} {line[self.metric.name]:.4g}"

    def show(self, epoch: int, step: int, loss: float) -> None:
        """Show the epoch (1-based), the step and the training loss."""
        self.shown = time.perf_counter()
        text = f"epoch {epoch}/{self.epochs} loss {loss:.4g} {self.evaluation}".rstrip()
        if self.bar is not None:
            self.bar.set_description_str(text, refresh=False)
            self.bar.update(step - self.bar.n)
            return
        pace = (self.shown - self.started) / max(1, step - self.first_step)
        left = pace * (self.steps - step)
        print(f"{text} · step {step}/{self.steps} · {left:.0f} s left", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()


def final_table(summary: dict, folder: Path) -> str:
    """The summary of a run as an aligned two-column table."""
    rows = [("status", f"{summary['status']} after {summary['epochs']} epochs,"
                       f" {summary['wall_seconds']:.0f} s")]
    for name, value in summary["best"].items():
        if name != "epoch":
            rows.append((f"best {name}", f"{value:.5g} (epoch {summary['best']['epoch']})"))
    rows += [(name, f"{value:.5g}") for name, value in summary["final"].items()
             if isinstance(value, float) and name.startswith(("train_", "eval_"))]
    rows.append(("gradient evaluations", str(summary["final"].get("gradient_evaluations", 0))))
    rows += [(name, "not reached" if epoch is None else f"epoch {epoch}")
             for name, epoch in summary["milestones"].items()]
    rows.append(("written to", str(folder)))
    width = max(len(name) for name, _ in rows)
    title = f"{summary['task']} · {summary['optimizer']} · seed {summary['seed']}"
    return "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in rows)])
