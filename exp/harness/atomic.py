"""Atomic writes: a reader, or what a killed process leaves, has the old content or the new one."""

import os
import uuid
from pathlib import Path


def replace(path: Path, content: bytes | memoryview) -> None:
    """Write a file through a temporary one, `.<name>.<random>.tmp`, which is flushed to the disk
    (fsync) and renamed. Raises OSError and leaves the old content if that fails."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
