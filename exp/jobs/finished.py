"""The run folder of a job that has come to its end, as a record."""

import json
from pathlib import Path

from exp.jobs.queue import folder_settings

CURVES = ("train_loss", "train_accuracy", "eval_loss", "eval_accuracy", "eval_perplexity",
          "eval_perplexity_padded", "gradient_evaluations", "seconds")
DIGITS = 5  # of a curve's values: seeds differ in the third


def is_finished(folder: Path) -> bool:
    """Whether the folder holds a run that has come to its end, diverged ones included."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return summary["status"] in ("completed", "diverged")


def read_folder(folder: Path) -> tuple[dict, dict, dict]:
    """One finished run: its record, its essential settings, the hashes of its sources."""
    summary, facts = (json.loads((folder / name).read_text(encoding="utf-8"))
                      for name in ("summary.json", "run.json"))
    lines = [json.loads(line)
             for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    curve = {key: [_rounded(line.get(key)) for line in lines] for key in CURVES
             if any(line.get(key) is not None for line in lines)}
    record = {
        **{key: summary[key] for key in ("status", "epochs", "milestones", "best",
                                         "wall_seconds")},
        "steps": lines[-1]["step"] if lines else 0,
        "device": facts["device"], "threads": facts["threads"],
        "torch": facts["versions"]["torch"], "commit": facts["commit"],
        "uncommitted_changes": facts["uncommitted_changes"],
        "peak_memory_bytes": max((line["peak_memory_bytes"] for line in lines), default=0),
        "curve": curve,
    }
    settings = folder_settings(folder, summary["task"])
    return record, settings, facts.get("sources", {})


def _rounded(value: float | None) -> float | None:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
