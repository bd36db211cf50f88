"""What the command line writes: in every encoding, and nothing that a terminal would obey."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from fewstep.text import printable


@contextmanager
def shown() -> Iterator[None]:
    """Within the block a character that a stream cannot encode is written out (`\\xd7`), and on
    standard output a control character too: it may come from a file. Progress on standard error
    moves the cursor.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook has another
            stream.reconfigure(errors="backslashreplace")
    with redirect_stdout(None if sys.stdout is None else _Shown(sys.stdout)):
        yield


class _Shown:
    """A stream that writes control characters out."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes the text; its length."""
        self._stream.write(printable(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
