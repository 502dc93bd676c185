"""Folder lock: one process at a time writes to a folder; the kernel frees the lock when it ends.

An exclusive `flock` on the file `lock`, which also names the holder. A child process that is
started to work in a folder may inherit the lock from its parent, so that it is never free between.
"""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exp.harness.errors import ConfigError

NAME = "lock"
INHERITED = "ARS_LOCK"  # environment variable: descriptor of the inherited lock
TRIES, PAUSE = 20, 0.05  # seconds between tries: `holder` of another process takes it briefly


def acquire(folder: Path) -> int:
    """Lock the folder and return the lock's file descriptor. The lock lasts until `release` or the
    end of every process that has the descriptor. Raises ConfigError, naming the holder, if the
    folder is locked."""
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
    """Write `process`, a process id on this host, into the lock file as its holder."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {process} on {socket.gethostname()}\n".encode(), 0)


def release(descriptor: int) -> None:
    """Free a lock, also for the processes that have inherited it."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


@contextmanager
def exclusive(file: Path) -> Iterator[None]:
    """Inside, this process alone holds the lock `file`, which is created; waits for the others."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def holder(folder: Path) -> str | None:
    """Holder of the folder's lock, "process 7 on host"; None if it is not locked."""
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
    """Process id of the lock's holder, None if it is not locked or held on another host."""
    words = (holder(folder) or "").split(" ", 3)
    here = words[0] == "process" and words[-1] == socket.gethostname()
    return int(words[1]) if here else None


def is_inherited(folder: Path) -> bool:
    """Whether this process has inherited the folder's lock."""
    return _inherited(folder) is not None


def _inherited(folder: Path) -> int | None:
    try:
        descriptor = int(os.environ[INHERITED])
        same = os.path.samestat(os.fstat(descriptor), os.stat(folder / NAME))
    except (KeyError, ValueError, OSError):
        return None
    return descriptor if same else None
