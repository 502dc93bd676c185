"""Read the folder of a finished run into a record."""

import hashlib
import json
from pathlib import Path

from exp.harness.folder import epochs_of, read_object
from exp.harness.task import Task
from exp.jobs.freshness import Identity, folder_identity

# Keys of metrics.jsonl that are not kept as curves.
NO_CURVES = ("epoch", "step", "lr", "peak_memory_bytes", "diagnostics")
DIGITS = 5  # significant digits of a curve's values; seeds differ in the third


def finished_run(folder: Path, task: Task) -> tuple[dict, Identity, dict] | None:
    """Return (record, identity, source hashes) of the completed or diverged run in a folder. None
    if no run has ended there or its files are damaged: the epochs must be 1, 2, ..., each once."""
    summary, facts = (read_object(folder / name) for name in ("summary.json", "run.json"))
    if summary.get("status") not in ("completed", "diverged"):
        return None
    try:
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
        lines, identity = epochs_of(text), folder_identity(folder, task)
        if not len(lines) == text.count("\n") == summary["epochs"]:
            return None
        return _record(summary, facts, lines, identity), identity, facts.get("sources", {})
    except (OSError, KeyError, TypeError, AttributeError, ValueError):
        return None


def _record(summary: dict, facts: dict, lines: list[dict], identity: Identity) -> dict:
    names = dict.fromkeys(key for line in lines for key in line if key not in NO_CURVES)
    curve = {name: [_rounded(line.get(name)) for line in lines] for name in names
             if any(line.get(name) is not None for line in lines)}
    return {
        **{key: summary[key] for key in ("status", "epochs", "milestones", "best",
                                         "wall_seconds")},
        "steps": lines[-1]["step"] if lines else 0,
        "device": facts["device"], "threads": facts["threads"], "data": data_digest(facts),
        "torch": facts["versions"]["torch"], "commit": facts["commit"],
        "uncommitted_changes": facts["uncommitted_changes"], "recipes": identity.recipes,
        "peak_memory_bytes": max((line["peak_memory_bytes"] for line in lines), default=0),
        "curve": curve,
    }


def data_digest(facts: dict) -> str | None:
    """Return a hash, seven hex digits, of all data checksums in a run.json; None without any."""
    checksums = facts.get("data")
    if not checksums:
        return None
    return hashlib.sha256(json.dumps(checksums, sort_keys=True).encode()).hexdigest()[:7]


def _rounded(value: float | None) -> float | None:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
