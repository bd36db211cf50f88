"""What the command line writes: in every encoding, nothing that a terminal would obey, and whether
anybody reads it or not.
"""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from fewstep.text import Unbroken, printable


@contextmanager
def shown() -> Iterator[None]:
    """Within the block a character that a stream cannot encode is written out (`\\xd7`), and on
    standard output a control character too: it may come from a file. Progress on standard error
    moves the cursor. What cannot be written is lost and ends no work (`| head`, a closed terminal).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook has another
            stream.reconfigure(errors="backslashreplace")
    out = None if sys.stdout is None else _Shown(sys.stdout)
    error = None if sys.stderr is None else Unbroken(sys.stderr)
    with redirect_stdout(out), redirect_stderr(error):
        yield


class _Shown(Unbroken):
    """A stream that writes control characters out."""

    def write(self, text: str) -> int:
        super().write(printable(text))
        return len(text)
