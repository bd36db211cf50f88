"""What can go wrong for a user, with the exit code that the command line gives it, and which
process says so.

A wrong value, a missing or damaged file is an ordinary ValueError or OSError and ends with code 2.
"""

import errno
import os
import re

SHORTAGE = re.compile(
    "out of memory"  # CUDA, HIP, MPS, XPU; drivers and Triton below them
    "|(can't|cannot|failed to|unable to) (cuda )?(m|c)?alloc"  # allocators, mmap, NCCL
    "|not enough memory"  # the allocator of Windows
    "|bad_?alloc"  # the C++ library
    "|alloc(ation)?_?failed"  # cuBLAS, cuDNN, cuFFT, cuSOLVER, cuSPARSE, MIOpen
    # oneDNN; with a descriptor it is an operation that it does not know
    "|could not (create|execute) a primitive(?! desc)|could not create a memory",
    re.IGNORECASE,
)


class RefusedError(ValueError):
    """A run or checkpoint that must not be continued as asked: exit code 3."""


class NotFiniteError(ValueError):
    """Numbers that are not finite, where images, figures or weights were to be: exit code 2."""


class DivergedError(RuntimeError):
    """A run's losses, weights or samples are not finite numbers any more: exit code 4."""


class DataMemoryError(MemoryError):
    """Memory ran out while data was read: its text names the file, and is what a user is told."""


def out_of_memory(error: BaseException) -> bool:
    """Python's own type; an OSError of that number; a RuntimeError with a text by which PyTorch or
    a library below it says so (PyTorch's own type for GPUs is one).
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, RuntimeError):
        return isinstance(error, MemoryError)
    return SHORTAGE.search(str(error)) is not None


def option_errors(error: BaseException) -> list[str]:
    """One line per wrong option, with its dotted path; empty where the error is not of options."""
    details = getattr(error, "errors", None)  # pydantic's, without importing pydantic for it
    if not callable(details):
        return []
    lines = []
    for one in details():
        path = ".".join(map(str, one["loc"])) or "configuration"
        given = repr(one["input"])
        got = f" (got {given})" if len(given) <= 80 else ""  # where it is short enough to help
        lines.append(f"{path}: {one['msg'].removeprefix('Value error, ')}{got}")
    return lines


def connection_lost(error: BaseException) -> bool:
    """Whether PyTorch says that a process cannot be reached: a RuntimeError that names the library
    it used.
    """
    if out_of_memory(error):
        return False
    return isinstance(error, RuntimeError) and any(name in str(error) for name in ("gloo", "NCCL"))


def rank() -> int:
    """This process's number among those of torchrun; 0, the one that writes and speaks, without
    torchrun. For the door only, where processes have not met yet; behind it a `World` knows.
    """
    return int(os.environ.get("RANK", "0"))
