"""Text that others wrote: names of places as they are typed, and what a terminal may be shown."""

import os
import re
from pathlib import Path

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


def _written_out(found: re.Match[str]) -> str:
    return found.group().encode("unicode_escape").decode()
