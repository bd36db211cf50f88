"""Signals that end a run: SIGINT, SIGTERM, SIGHUP and those that a run names."""

import signal
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal

Extra = Literal["SIGUSR1", "SIGUSR2"]


class StoppedError(SystemExit):
    """A run ends behind the step at which a signal was noted, with all that it writes."""

    def __init__(self, number: int):
        super().__init__(128 + number)


class Signals:
    """Within the block a first signal is noted in `number`; a second one ends the run at once, with
    SystemExit of 128 and its number.

    waits: False where nobody looks at `number`: the first one ends it, and SIGINT is Python's.
    more: others than the three, which a scheduler sends. noted: called when one was noted, in a
    thread of its own, for the main one may be in the middle of printing. SIGHUP (a closed terminal)
    is let alone where it is ignored, as nohup does. Outside the main thread the owner of that
    thread handles signals, and nothing is noted.
    """

    def __init__(
        self,
        more: Sequence[str] = (),
        waits: bool = True,
        noted: Callable[[], None] | None = None,
    ) -> None:
        self.number, self.waits, self.noted = 0, waits, noted
        self._names = (*(("SIGINT",) if waits else ()), "SIGTERM", "SIGHUP", *more)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        try:
            for name in self._names:
                one = getattr(signal, name, None)  # not every system has all of them
                if one is None or (name == "SIGHUP" and signal.getsignal(one) is signal.SIG_IGN):
                    continue
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
        if self.number or not self.waits:
            raise SystemExit(128 + number)
        self.number = number
        if self.noted is not None:
            threading.Thread(target=self.noted, daemon=True).start()
