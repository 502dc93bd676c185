"""The lock of a folder: at most one process writes to it, and the kernel frees it when that ends.

An exclusive `flock` on the file `lock`, which also names the holder. A process that is started to
work in a folder may inherit the lock from the one that starts it, so that there is no gap between.
"""

import fcntl
import os
import socket
import time
from pathlib import Path

from exp.harness.errors import ConfigError

NAME = "lock"
INHERITED = "ARS_LOCK"  # environment variable: the descriptor of a lock that was passed on
TRIES, PAUSE = 20, 0.05  # seconds between tries: someone may only be asking whether it is free


def acquire(folder: Path) -> int:
    """Lock the folder; the file descriptor, which keeps the lock until `release` or the end of
    every process that has it. Raises ConfigError with the holder if it is locked."""
    if (inherited := _inherited(folder)) is not None:
        descriptor = inherited
    else:
        descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o644)
        for attempt in range(TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if attempt == TRIES - 1:
                    os.close(descriptor)
                    raise ConfigError(f"{folder} is in use by {holder(folder)}") from error
            time.sleep(PAUSE)
    name_holder(descriptor, os.getpid())
    return descriptor


def name_holder(descriptor: int, process: int) -> None:
    """Write into the lock which process of this host has it."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {process} on {socket.gethostname()}\n".encode(), 0)


def release(descriptor: int) -> None:
    """Free a lock, whoever else has inherited it."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def holder(folder: Path) -> str | None:
    """Who has locked the folder ("process 7 on host"), None if nobody has."""
    try:
        descriptor = os.open(folder / NAME, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return os.pread(descriptor, 1000, 0).decode().strip() or "a process that is starting"
    finally:
        os.close(descriptor)


def local_process(folder: Path) -> int | None:
    """The process of this host that has locked the folder, None if there is none."""
    words = (holder(folder) or "").split(" ", 3)
    here = words[0] == "process" and words[-1] == socket.gethostname()
    return int(words[1]) if here else None


def is_inherited(folder: Path) -> bool:
    """Whether this process was started with the folder's lock."""
    return _inherited(folder) is not None


def _inherited(folder: Path) -> int | None:
    try:
        descriptor = int(os.environ[INHERITED])
        same = os.path.samestat(os.fstat(descriptor), os.stat(folder / NAME))
    except (KeyError, ValueError, OSError):
        return None
    return descriptor if same else None
