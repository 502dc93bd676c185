"""Data sets, one per file: files are located and verified, then held as tensors on the device.

Files are looked for in data/cache/, then in $ARS_DATA, then downloaded into data/cache/. A file
that differs from its published checksum is refused. What is computed from them (tokenizer, rows of
tokens) is cached in data/cache/ with a checksum of its own and computed again if it is damaged.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CACHE = Path(__file__).parent / "cache"
LFS_POINTER = b"version https://git-lfs"  # how a file begins that Git LFS has not downloaded


class DataError(Exception):
    """Data is missing or damaged; the text is for the user."""


def locate(folder: str) -> Path | None:
    """The folder in data/cache/ or else in $ARS_DATA, None if it is in neither."""
    places = [CACHE / folder]
    if os.environ.get("ARS_DATA"):
        places.append(Path(os.environ["ARS_DATA"]) / folder)
    return next((place for place in places if place.is_dir()), None)


def read(path: Path, checksum: str, algorithm: str = "sha256") -> bytes:
    """The content of a file. Raises DataError if it is missing or has another checksum."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"data is incomplete: cannot read {path} ({error.strerror})") from error
    return verify(content, checksum, str(path), algorithm)


def verify(content: bytes, checksum: str, name: str, algorithm: str = "sha256") -> bytes:
    """The content itself. Raises DataError if its checksum is another one."""
    if hashlib.new(algorithm, content, usedforsecurity=False).hexdigest() == checksum:
        return content
    if content.startswith(LFS_POINTER):
        raise DataError(f"{name} is a Git LFS pointer, not the data: run git lfs pull")
    label = {"md5": "MD5", "sha256": "SHA-256"}[algorithm]
    raise DataError(f"{name} is damaged or another file: its {label} sum is not {checksum}")


def download(name: str, folder: str, sources: Iterable[Callable[[], str]]) -> Path:
    """The folder in data/cache/ that the first working source fills; it returns that one's name.

    Raises DataError if none works, saying why and where to put the data.
    """
    print(f"downloading {name}, once", file=sys.stderr, flush=True)
    failures = []
    for source in sources:
        try:
            return CACHE / source()
        except Exception as error:  # a network has many ways to fail
            failures.append(f"{type(error).__name__}: {error}".splitlines()[0])
    raise DataError(f"{name} is not there and cannot be downloaded ({'; '.join(failures)}): put "
                    f"its files into data/cache/{folder}/ or $ARS_DATA/{folder}/")


@contextmanager
def new_folder(folder: str) -> Iterator[Path]:
    """A temporary folder that becomes data/cache/<folder> if the block succeeds, so that no other
    run sees half of it; of two runs at once the first one's is kept."""
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


def cached(name: str, compute: Callable[[], bytes]) -> bytes | memoryview:
    """The bytes that `compute` returned when data/cache/<name> was written, or returns now.

    The file begins with the SHA-256 of its name and bytes; a damaged one is computed again.
    Several processes may do so at once: each writes a temporary file and renames it.
    """
    path = CACHE / name
    with suppress(FileNotFoundError):
        kept = path.read_bytes()
        content: bytes | memoryview = memoryview(kept)[32:]
        if kept[:32] == _checksum(name, content):
            return content
        print(f"{path} is damaged: computing it again", file=sys.stderr)
    content = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(_checksum(name, content) + content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return content


def _checksum(name: str, content: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(name.encode())
    digest.update(content)
    return digest.digest()
