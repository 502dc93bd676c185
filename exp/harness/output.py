"""Output that never fails: an error in printing must not end a run."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class Tolerant:
    """A text stream that drops output that cannot be written, because the pipe's reader is gone,
    the disk is full or the stream is closed. Characters that its encoding lacks are escaped."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write the text, or drop it. Returns its length."""
        with self._dropping():
            try:
                self.stream.write(text)
            except UnicodeEncodeError:
                encoding = self.stream.encoding
                self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flush the stream, or drop its buffer."""
        with self._dropping():
            self.stream.flush()

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):
            with suppress(OSError, ValueError):  # otherwise Python's flush at exit fails
                null = os.open(os.devnull, os.O_WRONLY)
                if null != (descriptor := self.stream.fileno()):  # free if it was closed
                    os.dup2(null, descriptor)
                    os.close(null)


@contextmanager
def tolerant_output() -> Iterator[None]:
    """Inside, output to stdout and stderr that cannot be written is dropped."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Tolerant(stream or io.StringIO()) for stream in streams)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = streams
