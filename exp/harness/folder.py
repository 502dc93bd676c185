"""The run folder: its files, when it may be written to, and atomic writes."""

import io
import json
import math
import os
import sys
import zipfile
from collections.abc import Iterator
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch

from exp.harness import atomic
from exp.harness.errors import ConfigError
from exp.harness.lock import acquire, holder, is_inherited, release
from exp.harness.toml import to_toml

FILES = ("config.toml", "run.json", "metrics.jsonl", "summary.json", "curves.png",
         "diagnostics.png", "latest.pt", "best.pt")
KEYS = {"latest.pt": "settings", "best.pt": "model"}  # a required key of each checkpoint
PAST = ("command", "commit", "uncommitted_changes", "recipes", "sources", "device",
        "versions")  # keys of run.json that are kept on resuming, as `resumed_from`
DAMAGED = "damaged"  # status of a run whose summary.json cannot be read
NOT_NUMBERS = ("diagnostics", "evaluated_weights")  # keys of metrics.jsonl
UNKNOWN = {**dict.fromkeys(PAST), "recipes": {"exp.harness": 0}}  # equal to no real RECIPE


class RunFolder:
    """One run on disk: config.toml, run.json, metrics.jsonl, summary.json, curves.png, *.pt.

    Raises ConfigError if the folder holds a run that is neither resumed nor overwritten, if a
    completed run without a checkpoint is resumed, or if another process writes to the folder.
    """

    def __init__(self, path: Path, resume: bool = False, overwrite: bool = False) -> None:
        self.path, self.resume, self.overwrite = path, resume, overwrite
        self.record = ""  # the text of metrics.jsonl, once the run has begun
        self._lock: int | None = None
        try:
            if path.exists() and not path.is_dir():
                raise ConfigError(f"{path} is a file: --output must name a folder")
        except OSError as error:  # a name that is too long, say
            raise ConfigError(f"--output {path}: {error}") from error
        if (other := holder(path)) and not is_inherited(path):
            raise ConfigError(f"{path} is in use by {other}")
        self._require_usable()

    def _require_usable(self) -> None:
        present = [name for name in FILES if (self.path / name).exists()]
        for name in present:
            if (self.path / name).is_dir():
                raise ConfigError(f"{self.path / name} is a folder, but a run writes a file there: "
                                  "remove it, or choose another --output")
        status = (self.summary() or {}).get("status", "unfinished")
        if present and not self.resume and not self.overwrite:
            raise ConfigError(f"{self.path} holds a run ({status}): --resume continues it,"
                              " --overwrite starts it anew, --output chooses another folder")
        if self.resume and "latest.pt" not in present and status in ("completed", DAMAGED):
            raise ConfigError(f"{self.path} holds a {status} run without latest.pt: nothing to"
                              " resume from; --overwrite starts it anew")

    def summary(self) -> dict | None:
        """Return summary.json, None while the run has not ended, {"status": "damaged"} if the file
        cannot be read."""
        path = self.path / "summary.json"
        return read_object(path) or {"status": DAMAGED} if path.exists() else None

    def lock(self) -> None:
        """Create the folder and keep every other process from writing to it until `unlock`.

        Raises ConfigError if it cannot be created, or if another process uses it or has just
        written a run to it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = acquire(self.path)
        except OSError as error:
            raise ConfigError(f"cannot create the run folder {self.path}: {error}") from error
        try:
            self._require_usable()
        except ConfigError:
            self.unlock()
            raise

    def unlock(self) -> None:
        """Release the lock of the folder, if it is held."""
        if self._lock is not None:
            release(self._lock)
            self._lock = None

    def begin(self, settings: dict, facts: dict, record: str = "") -> None:
        """Write config.toml, run.json and metrics.jsonl, whose text so far is `record`; remove
        summary.json and the temporary files of dead runs. On resuming, run.json keeps the facts of
        the run's earlier parts as `resumed_from`."""
        if self.resume and (self.path / "latest.pt").exists():  # also within the first epoch
            facts = {**facts, "resumed_from": self._past(facts)}
        if self.overwrite:
            for name in FILES:
                (self.path / name).unlink(missing_ok=True)
        for temporary in filter(Path.is_file, self.path.glob(".*.tmp")):
            temporary.unlink(missing_ok=True)
        self.record = record
        self.write_text("metrics.jsonl", record)
        self.write_text("config.toml", to_toml(settings))
        self.write_json("run.json", facts)
        (self.path / "summary.json").unlink(missing_ok=True)

    def _past(self, facts: dict) -> list[dict]:
        """Return the facts of the run's earlier parts. Prints a warning if their code differs from
        the present code or is unknown."""
        before = read_object(self.path / "run.json")
        if not before:
            print(f"warning: {self.path / 'run.json'} is missing or damaged; the code of the "
                  "earlier epochs is unknown, so the run does not count as a result",
                  file=sys.stderr)
            return [UNKNOWN]
        sources = before.get("sources") or {}
        changed = [name for name, digest in sources.items()
                   if facts["sources"].get(name, digest) != digest]
        if changed:
            print(f"warning: {', '.join(changed)} changed since the run began; run.json records "
                  "the earlier code; if a RECIPE number changed, the run does not count as a "
                  "result", file=sys.stderr)
        return [*(before.get("resumed_from") or []), {key: before.get(key) for key in PAST}]

    def checkpoint(self) -> dict | None:
        """Load latest.pt to the CPU; return None if the run is not resumed or has no latest.pt.

        Raises ConfigError if it is damaged.
        """
        if not self.resume or not (self.path / "latest.pt").exists():
            return None
        return self.load_checkpoint("latest.pt")

    def load_checkpoint(self, name: str) -> dict:
        """Load latest.pt or best.pt to the CPU. Raises ConfigError if it is damaged."""
        path = self.path / name
        try:
            with zipfile.ZipFile(path) as archive:  # torch.load does not verify its checksums
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"wrong checksum of {damaged}")
            state = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(state, dict) or KEYS[name] not in state:
                raise ValueError(f"it has no {KEYS[name]}")
        except Exception as error:  # damage raises many kinds of errors
            raise ConfigError(f"cannot read the checkpoint {path} ({type(error).__name__}: {error})"
                              ": it is damaged. --overwrite starts the run anew") from error
        return state

    def save_checkpoint(self, name: str, state: dict) -> None:
        """Write a checkpoint atomically."""
        # Serialized in memory first: on a full disk torch's file writer hides the OSError.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        atomic.replace(self.path / name, buffer.getbuffer())

    def write_text(self, name: str, text: str) -> None:
        """Write a text file atomically."""
        atomic.replace(self.path / name, text.encode())

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file atomically; numbers that are not finite become null."""
        self.write_text(name, json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")

    def append_metrics(self, line: dict) -> None:
        """Append one line to metrics.jsonl and flush it to the disk (fsync)."""
        text = json.dumps(_finite(line), allow_nan=False) + "\n"
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self.record += text

    def metrics(self) -> list[dict]:
        """Return the lines of metrics.jsonl as objects, up to the first line that is truncated,
        damaged or not of the next epoch."""
        try:
            text = (self.path / "metrics.jsonl").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return []
        return epochs_of(text)


def epochs_of(text: str) -> list[dict]:
    """Parse the text of a metrics.jsonl up to the first line that is damaged, is not of the next
    epoch (1, 2, ...), or has a value other than a finite number or null (for a non-finite one)."""
    epochs = takewhile(_is_epoch, zip(count(1), objects_of(text), strict=False))
    return [line for _, line in epochs]


def _is_epoch(numbered: tuple[int, dict]) -> bool:
    number, line = numbered
    return line.get("epoch") == number and all(
        value is None or type(value) in (int, float) and -math.inf < value < math.inf
        for key, value in line.items() if key not in NOT_NUMBERS)


def objects_of(text: str) -> Iterator[dict]:
    """Yield the objects of JSON lines, up to the first line that is truncated or damaged."""
    for line in text.split("\n")[:-1]:
        try:
            content = parsed(line)
        except ValueError:
            return
        if not isinstance(content, dict):
            return
        yield content


def read_object(path: Path) -> dict:
    """Return the object in a JSON file, {} if the file is missing, damaged or holds another value.
    A run.json or summary.json with values of the wrong type counts as damaged."""
    try:
        content = parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    sound = {"run.json": _is_run, "summary.json": _is_summary}.get(path.name, bool)
    return content if isinstance(content, dict) and sound(content) else {}


def parsed(text: str) -> Any:
    """Parse a JSON text. Raises ValueError if it is invalid or nested too deep for Python."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _is_run(facts: dict) -> bool:
    """Whether the facts that other modules read have the right types, also in `resumed_from`."""
    numbers, sources, parts = (facts.get(key) for key in ("recipes", "sources", "resumed_from"))
    return (isinstance(numbers or {}, dict) and isinstance(sources or {}, dict)
            and {type(number) for number in (numbers or {}).values()} <= {int}
            and isinstance(parts or [], list)
            and all(isinstance(part, dict) and _is_run(part) for part in parts or []))


def _is_summary(summary: dict) -> bool:
    return isinstance(summary.get("status"), str) and isinstance(summary.get("best", {}), dict)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
