"""Data sets, one per file: files are located and verified, then held as tensors on the device.

Files are looked for in data/cache/, then in $ARS_DATA, then downloaded into data/cache/. A file
that differs from its published checksum is rejected. Derived data (tokenizer, rows of tokens) are
cached in data/cache/ with a checksum of their own and computed again if damaged.
"""

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CACHE = Path(__file__).parent / "cache"
ABANDONED_SECONDS = 3600  # age from which on a temporary file counts as that of a killed process
LFS_POINTER = b"version https://git-lfs"  # start of a file not yet downloaded by Git LFS


class DataError(Exception):
    """Data is missing or damaged; the text is for the user."""


def locate(folder: str) -> Path | None:
    """Return the folder in data/cache/ or else in $ARS_DATA, None if it is in neither."""
    return next((place for place in places(folder) if place.is_dir()), None)


def places(folder: str) -> list[Path]:
    """Return where a folder may be: in data/cache/, then in $ARS_DATA if it is set."""
    shared = os.environ.get("ARS_DATA")
    return [CACHE / folder, *([Path(shared) / folder] if shared else [])]


def read(path: Path, checksum: str, algorithm: str = "sha256") -> bytes:
    """Return the content of a file. Raises DataError if it is missing or its checksum differs."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"data is incomplete: cannot read {path} ({error.strerror})") from error
    return verify(content, checksum, str(path), algorithm)


def verify(content: bytes, checksum: str, name: str, algorithm: str = "sha256") -> bytes:
    """Return `content`. Raises DataError, naming it `name`, if its checksum differs."""
    if hashlib.new(algorithm, content, usedforsecurity=False).hexdigest() == checksum:
        return content
    if content.startswith(LFS_POINTER):
        raise DataError(f"{name} is a Git LFS pointer, not the data: run git lfs pull")
    label = {"md5": "MD5", "sha256": "SHA-256"}[algorithm]
    raise DataError(f"{name} is damaged or the wrong file: its {label} is not {checksum}")


def download(name: str, folder: str, sources: Iterable[Callable[[], str]]) -> Path:
    """Try `sources` in order; each fills a folder in data/cache/ and returns its name. Return the
    path of the first that succeeds.

    Raises DataError if all fail, with the reasons and where to put the data.
    """
    print(f"downloading {name} (only once)", file=sys.stderr, flush=True)
    failures = []
    for source in sources:
        try:
            return CACHE / source()
        except Exception as error:  # a network has many ways to fail
            failures.append(f"{type(error).__name__}: {error}".splitlines()[0])
    raise DataError(f"{name} is missing and cannot be downloaded ({'; '.join(failures)}): put "
                    f"its files into data/cache/{folder}/ or $ARS_DATA/{folder}/")


@contextmanager
def new_folder(folder: str) -> Iterator[Path]:
    """A temporary folder that becomes data/cache/<folder> if the block succeeds, so that no other
    run sees it incomplete. If the folder is there already, because two runs make it at once or it
    is incomplete, only the files that it lacks are added."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as parent:
        temporary = Path(parent) / folder
        temporary.mkdir()
        yield temporary
        try:
            os.rename(temporary, CACHE / folder)
        except OSError:
            if not (CACHE / folder).is_dir():
                raise
            for path in temporary.iterdir():
                if not (CACHE / folder / path.name).exists():
                    os.replace(path, CACHE / folder / path.name)


def cached(name: str, compute: Callable[[], bytes]) -> bytes | memoryview:
    """Return the content of data/cache/<name>; if it is missing or damaged, write it by `compute`.

    The file begins with the SHA-256 of its name and content. Several processes may compute it at
    once: each writes a temporary file and renames it. If the file cannot be written, a warning is
    printed and the content returned.
    """
    path = CACHE / name
    with suppress(FileNotFoundError):
        kept = path.read_bytes()
        content: bytes | memoryview = memoryview(kept)[32:]
        if kept[:32] == _checksum(name, content):
            return content
        print(f"{path} is damaged: computing it again", file=sys.stderr)
    content = compute()
    try:
        _keep(path, _checksum(name, content) + content)
    except OSError as error:
        print(f"warning: cannot write {path} ({error}); it will be computed again next time",
              file=sys.stderr)
    return content


def _keep(path: Path, content: bytes) -> None:
    """Write a file of the cache atomically, and remove what killed processes left of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in path.parent.glob(f".{path.name}.*.tmp"):
        with suppress(OSError):
            if time.time() - abandoned.stat().st_mtime > ABANDONED_SECONDS:
                abandoned.unlink()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _checksum(name: str, content: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(name.encode())
    digest.update(content)
    return digest.digest()
