"""What can go wrong for a user, with the exit code that the command line gives it, and which
process says so.

A wrong value, a missing or damaged file is an ordinary ValueError or OSError and ends with code 2.
"""

import os


class RefusedError(ValueError):
    """A run or checkpoint that must not be continued as asked: exit code 3."""


class DivergedError(RuntimeError):
    """Too many steps with a non-finite loss or gradient: exit code 4."""


def out_of_memory(error: BaseException) -> bool:
    """PyTorch's own type on a GPU, a RuntimeError with a known text on a CPU."""
    texts = "out of memory", "can't allocate memory", "bad_alloc"
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


def connection_lost(error: BaseException) -> bool:
    """Whether PyTorch says that a process cannot be reached: a RuntimeError that names the library
    it used.
    """
    return isinstance(error, RuntimeError) and any(name in str(error) for name in ("gloo", "NCCL"))


def rank() -> int:
    """This process's number among those of torchrun; 0, the one that writes and speaks, without
    torchrun.
    """
    return int(os.environ.get("RANK", "0"))
