"""Text that others wrote: names of places as they are typed, and what a terminal may be shown, if
it is there.
"""

import math
import os
import re
import sys
from pathlib import Path
from typing import Any

# Control characters (a terminal obeys them), marks that turn the direction of writing, separators
# of lines, halves of characters (of a file name that is no UTF-8).
UNSHOWN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def place(text: str | Path) -> Path:
    """The file or folder that a user names; ~ and ~name in front are a home."""
    return Path(os.path.expanduser(text))  # Path.expanduser raises for a home that is not there


def printable(text: str) -> str:
    """The text with what a terminal would obey written out (`\\x1b`); lines and tabs stay."""
    return UNSHOWN.sub(_written_out, text)


def in_one_line(text: object, most: int = 0) -> str:
    """Text as a part of one line: white space is one space. most: of more characters the end is
    left out.
    """
    line = printable(" ".join(str(text).split()))
    return f"{line[:most]}…" if most and len(line) > most else line


def duration(seconds: float) -> str:
    """A time ahead in words, in minutes that are begun: "2 days 3 h", "1 h 5 min", "1 min"."""
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} day{'s' * (days != 1)} {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def counted(number: int, word: str) -> str:
    """A number of things: "1 step", "2,400 steps"."""
    return f"{number:,} {word}{'s' * (number != 1)}"


def lasted(seconds: float) -> str:
    """A time that is over in words: "45 s", and from a minute on as `duration`."""
    return duration(seconds) if seconds >= 60 else f"{seconds:.0f} s"


def _written_out(found: re.Match[str]) -> str:
    return found.group().encode("unicode_escape").decode()


def tell(line: str) -> None:
    """Prints a line at once, if anybody reads it."""
    if sys.stdout is not None:
        print(line, file=Unbroken(sys.stdout), flush=True)


class Unbroken:
    """A stream of which what cannot be written is lost: a pipe that nobody reads, a terminal that
    is gone, a full disk. Output is no part of the work.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes the text; its length."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Writes what waits."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        """From here on the stream leads nowhere: what waits in it must not fail again at the end
        of the program.
        """
        if isinstance(error, BlockingIOError):  # a reader that is slow
            return
        try:
            place = self._stream.fileno()
        except (OSError, AttributeError, ValueError):
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, place)
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
