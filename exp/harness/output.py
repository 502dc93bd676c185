"""Output that never fails: what a run prints must not decide how it ends."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class Tolerant:
    """A text stream that drops what cannot be written: its reader is gone, its disk is full, it is
    closed. Characters that its encoding lacks are written as escapes."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write the text, or drop it; its length."""
        with self._dropping():
            try:
                self.stream.write(text)
            except UnicodeEncodeError:
                encoding = self.stream.encoding
                self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flush the stream, or drop what it holds."""
        with self._dropping():
            self.stream.flush()

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):
            with suppress(OSError, ValueError):  # else Python fails to flush it at the end
                null = os.open(os.devnull, os.O_WRONLY)
                if null != (descriptor := self.stream.fileno()):  # which may be free itself
                    os.dup2(null, descriptor)
                    os.close(null)


@contextmanager
def tolerant_output() -> Iterator[None]:
    """Inside, what cannot be written to stdout and stderr is dropped."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Tolerant(stream or io.StringIO()) for stream in streams)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = streams
