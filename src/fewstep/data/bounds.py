"""How much a file may hold once it is unpacked; asked before the memory is taken."""

import contextlib
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from fewstep.errors import DataMemoryError, out_of_memory

MOST_BYTES = 1 << 29  # that any packed file may hold
MOST_TIMES = 20  # a packed file may hold more where it is large itself: images pack to a fifth


def check_bytes(file: Path, held: int) -> None:
    """ValueError where a file says that it holds more bytes than it may: 512 MB, or 20 times its
    own size.
    """
    own = file.stat().st_size
    if held > max(MOST_BYTES, MOST_TIMES * own):
        told = f"{held:,}" if held < 1 << 63 else "more than 2**63"  # Python writes no longer ones
        raise ValueError(
            f"{file} says that it holds {told} bytes in its {own:,}: refused, as more than "
            f"{MOST_BYTES >> 20} MB or {MOST_TIMES} times its size is rather an attack on the "
            "memory"
        )


def check_archive(file: Path) -> None:
    """`check_bytes` of all members of a tar archive, packed or not: a sparse member may say any
    size. ValueError also where it is damaged.
    """
    damaged = tarfile.TarError, OSError, EOFError, zlib.error, OverflowError, RecursionError
    held = 0
    try:
        with tarfile.open(file) as archive:
            while (member := archive.next()) is not None:
                held += member.size
                check_bytes(file, held)
    except damaged as error:
        raise ValueError(f"{file} is damaged or cannot be used: {error}") from None


@contextlib.contextmanager
def memory_for(name: object) -> Iterator[None]:
    """Where memory runs out inside, the error names what was read: no option of a run helps."""
    try:
        yield
    except DataMemoryError:
        raise
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise DataMemoryError(f"{name}: there is not memory enough to read it") from None
