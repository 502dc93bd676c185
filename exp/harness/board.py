"""TensorBoard event files of a run, on request."""

from pathlib import Path


class Board:
    """Writes the numbers of each metrics line as scalars over epochs, if `active`.

    purge_from: events from this epoch on are discarded, after resuming.
    """

    def __init__(self, folder: Path, active: bool, purge_from: int) -> None:
        self.writer = None
        if active:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge_from)

    def write(self, line: dict) -> None:
        """Add one line of metrics.jsonl, its diagnostics included."""
        if self.writer is None:
            return
        nested = {f"diagnostics/{k}": v for k, v in line.get("diagnostics", {}).items()}
        for name, value in {**line, **nested}.items():
            if isinstance(value, int | float) and name != "epoch":
                self.writer.add_scalar(name, value, line["epoch"])

    def close(self) -> None:
        """Flush and close the file."""
        if self.writer is not None:
            self.writer.close()
