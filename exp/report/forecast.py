"""Text on planned work and its duration, printed by --dry-run and before a long run."""

from collections.abc import Mapping

LONG = 90  # minutes; longer durations are given in hours


def forecast(seconds: Mapping[str, float | None]) -> str:
    """Return a line per piece of work, then `total`. seconds: name -> duration, None if unknown."""
    return "\n".join([*(f"{name}: {'never timed' if known is None else duration(known)}"
                        for name, known in seconds.items()), total(seconds)])


def total(seconds: Mapping[str, float | None]) -> str:
    """Return a line with the number of pieces of work and the sum of their durations."""
    timed = [known for known in seconds.values() if known is not None]
    if not seconds:
        return "nothing to run"
    parts = [f"at most about {duration(sum(timed))} in all"] if timed else []
    if missing := len(seconds) - len(timed):
        parts.append(f"{missing} never timed")
    return f"{len(seconds)} to run: {', and '.join(parts)}"


def duration(seconds: float) -> str:
    """Return a duration as text: "12 s", "3.5 min" or "2.0 h"."""
    minutes = seconds / 60
    return (f"{minutes / 60:.1f} h" if minutes >= LONG else f"{minutes:.1f} min" if minutes >= 1
            else f"{seconds:.0f} s")
