"""What can go wrong for a user, with the exit code that the command line gives it, and which process says so.

A wrong value, a missing or damaged file is an ordinary ValueError or OSError and ends with code 2.
"""

import os


class RefusedError(ValueError):
    """A run or checkpoint that must not be continued as asked: exit code 3."""


class DivergedError(RuntimeError):
    """Too many steps with a non-finite loss or gradient: exit code 4."""


class ElsewhereError(RuntimeError):
    """Another process failed, and says why; this one ends without a word."""


def out_of_memory(error: BaseException) -> bool:
    """PyTorch's own type on a GPU, a RuntimeError with a known text on a CPU."""
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def leads() -> bool:
    """Whether this process is the one of torchrun's that writes and speaks; true without torchrun."""
    return os.environ.get("RANK", "0") == "0"
