"""What a command would run and how long it takes: the lines of --dry-run, and the one before a
long run."""

from collections.abc import Mapping

LONG = 90  # minutes, from which on a duration is given in hours


def forecast(seconds: Mapping[str, float | None]) -> str:
    """A line for each piece of work by name, then `total`; None for one that was never timed."""
    return "\n".join([*(f"{name}: {'never timed' if known is None else duration(known)}"
                        for name, known in seconds.items()), total(seconds)])


def total(seconds: Mapping[str, float | None]) -> str:
    """How many pieces of work there are, and how long they take one after another."""
    timed = [known for known in seconds.values() if known is not None]
    if not seconds:
        return "nothing to run"
    parts = [f"at most about {duration(sum(timed))} in all"] if timed else []
    if missing := len(seconds) - len(timed):
        parts.append(f"{missing} never timed")
    return f"{len(seconds)} to run: {', and '.join(parts)}"


def duration(seconds: float) -> str:
    """"12 s", "3.5 min" or "2.0 h"."""
    minutes = seconds / 60
    return (f"{minutes / 60:.1f} h" if minutes >= LONG else f"{minutes:.1f} min" if minutes >= 1
            else f"{seconds:.0f} s")
