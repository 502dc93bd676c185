"""When a run ends: after its epochs, at `stop_at`, or when its gradient evaluations are spent."""

from collections.abc import Iterable, Mapping

from exp.harness.config import Experiment
from exp.harness.errors import ConfigError
from exp.harness.task import Metric


class Limits:
    """Follows the lines of metrics.jsonl. ended: whether the run ends with the last of them.

    `stop_at` is reached when `metric` has been as good for `hold` consecutive epochs; the run then
    trains for `linger` more.
    """

    def __init__(self, experiment: Experiment, metric: Metric) -> None:
        self.experiment, self.metric = experiment, metric
        self.held = 0  # consecutive epochs, up to the last one, whose metric reached `stop_at`
        self.reached: int | None = None  # the first epoch with held >= `hold`
        self.ended = False

    def follow(self, line: Mapping) -> None:
        """Take the line of a finished epoch."""
        limits, epoch = self.experiment, line["epoch"]
        target, most = limits.stop_at, limits.max_evaluations
        good = target is not None and self.metric.reaches(line.get(self.metric.name), target)
        self.held = self.held + 1 if good else 0
        if self.reached is None and self.held >= limits.hold:
            self.reached = epoch
        self.ended = (
            epoch >= limits.epochs
            or most is not None and line.get("gradient_evaluations", 0) >= most
            or self.reached is not None and epoch >= self.reached + limits.linger)

    def resume(self, lines: Iterable[Mapping], batches: int) -> None:
        """Take the lines of a run that is resumed, `batches` finished batches after the last one.

        Raises ConfigError if these limits end the run earlier.
        """
        epoch = 0
        for line in lines:
            self._require_open(epoch)
            self.follow(line)
            epoch = line["epoch"]
        if batches:
            self._require_open(epoch)

    def _require_open(self, epoch: int) -> None:
        if self.ended:
            raise ConfigError(
                f"--resume: epochs, stop_at or max_evaluations in [experiment] end this run with "
                f"epoch {epoch}, but the checkpoint is past it: raise them, or --overwrite starts "
                "the run anew")
