"""JSON files of results: reading with clear errors, atomic writing.

    content = read_json(path)                 # None if there is no file; require_json raises
    write_json(path, content, depth=2)        # one line per value at nesting depth 2
"""

import json
from pathlib import Path

from exp.harness import atomic


def read_json(path: Path) -> dict | None:
    """Read a JSON file; None if there is no file. Raises ValueError if it is damaged."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): restore it or delete it") from error


def require_json(path: Path) -> dict:
    """Read a JSON file. Raises ValueError if it is missing or damaged."""
    content = read_json(path)
    if content is None:
        raise ValueError(f"{path} does not exist: run without --render to measure it")
    return content


def write_json(path: Path, content: dict | list, depth: int) -> None:
    """Write a JSON file atomically. depth: as in `to_json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.replace(path, (to_json(content, depth) + "\n").encode())


def to_json(value: object, depth: int) -> str:
    """Return JSON with line breaks down to nesting level `depth` and one line per value there, so
    that a diff of two versions shows which record changed."""
    if depth and isinstance(value, dict) and value:
        lines = [f"{json.dumps(key)}: {to_json(item, depth - 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + "\n}"
    if depth and isinstance(value, list) and value:
        return "[\n" + ",\n".join(to_json(item, depth - 1) for item in value) + "\n]"
    return json.dumps(value)
