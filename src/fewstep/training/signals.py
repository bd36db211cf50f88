"""SIGINT and SIGTERM, noted while a step goes on."""

import signal
from types import TracebackType
from typing import Any


class Signals:
    """Within the block a first signal is noted in `number`; a second one ends the run at once.

    Outside the main thread the owner of that thread handles signals, and nothing is noted.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        try:
            for one in (signal.SIGINT, signal.SIGTERM):
                self._before[one] = signal.signal(one, self._note)
        except ValueError:  # not the main thread
            self._before = {}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.number:
            raise SystemExit(128 + number)
        self.number = number
