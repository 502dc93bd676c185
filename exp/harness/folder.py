"""The run folder: its files, when it may be written to, and writing each of them whole or not."""

import io
import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from exp.harness.errors import ConfigError
from exp.harness.toml import to_toml

FILES = ("config.toml", "run.json", "metrics.jsonl", "summary.json", "curves.png",
         "diagnostics.png", "latest.pt", "best.pt")


class RunFolder:
    """One run on disk: config.toml, run.json, metrics.jsonl, summary.json, curves.png, *.pt.

    Raises ConfigError for a folder that holds a run, unless it is resumed or overwritten.
    """

    def __init__(self, path: Path, resume: bool = False, overwrite: bool = False) -> None:
        self.path, self.resume, self.overwrite = path, resume, overwrite
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is a file: --output must name a folder")
        held = [name for name in FILES if (path / name).exists()]
        if held and not resume and not overwrite:
            status = (self.summary() or {}).get("status", "unfinished")
            raise ConfigError(f"{path} holds a run ({status}): --resume continues it,"
                              " --overwrite starts it anew, --output goes elsewhere")

    def summary(self) -> dict | None:
        """summary.json, or None while the run has not ended."""
        path = self.path / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def begin(self, settings: dict, facts: dict, epochs: int) -> None:
        """Create the folder and say what runs; keep the record of the first `epochs` epochs."""
        self.path.mkdir(parents=True, exist_ok=True)
        if self.overwrite:
            for name in FILES:
                (self.path / name).unlink(missing_ok=True)
        kept = [line for line in self.metrics() if line["epoch"] <= epochs]
        self.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        self.write_text("config.toml", to_toml(settings))
        self.write_json("run.json", facts)
        (self.path / "summary.json").unlink(missing_ok=True)

    def checkpoint(self) -> dict | None:
        """latest.pt on the CPU, None if there is none to resume from.

        Raises ConfigError for a damaged one.
        """
        if not self.resume or not (self.path / "latest.pt").exists():
            return None
        return self.load_checkpoint("latest.pt")

    def load_checkpoint(self, name: str) -> dict:
        """latest.pt or best.pt on the CPU. Raises ConfigError for a damaged one."""
        path = self.path / name
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            raise ConfigError(f"cannot read the checkpoint {path} ({type(error).__name__}): it is"
                              " damaged. --overwrite starts the run anew") from error

    def save_checkpoint(self, name: str, state: dict) -> None:
        """Write a checkpoint to a temporary file, then rename it: never half a checkpoint."""
        # Serialized in memory first: on a full disk torch's file writer hides the OSError.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self._replace(name, buffer.getbuffer())

    def write_text(self, name: str, text: str) -> None:
        """Write a text file as a whole."""
        self._replace(name, text.encode())

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file as a whole; numbers that JSON cannot say become null."""
        self.write_text(name, json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")

    def append_metrics(self, line: dict) -> None:
        """Add one line to metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(line), allow_nan=False) + "\n")

    def metrics(self) -> list[dict]:
        """The lines of metrics.jsonl; one that a crash cut off is left out."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        return [json.loads(line) for line in lines[:-1]]

    def _replace(self, name: str, content: bytes | memoryview) -> None:
        temporary = self.path / f".{name}.{os.getpid()}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path / name)
        finally:
            temporary.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
