"""Ctrl-C and SIGTERM, recorded during a step and handled after it."""

import signal
from typing import Any


class Interrupts:
    """Between `install` and `remove`, the first signal sets `pending`.

    A second Ctrl-C raises KeyboardInterrupt at once.
    """

    pending = False

    def install(self) -> None:
        """Install handlers of SIGINT and SIGTERM."""
        self.handlers = {number: signal.signal(number, self._note)
                         for number in (signal.SIGINT, signal.SIGTERM)}

    def remove(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.pending and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.pending = True
