"""How much a file may hold once it is unpacked; asked before the memory is taken."""

import contextlib
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from fewstep.errors import DataMemoryError, out_of_memory

MOST_BYTES = 1 << 29  # that any packed file may hold
MOST_TIMES = 20  # a packed file may hold more where it is large itself: images pack to a fifth
LONGEST_LINE = 64 << 20  # of a table of text
BLOCK = 1 << 16  # bytes of a file that tell whether it is text
DEEPEST = 100  # lists in lists of JSON
ZIPS = (".npz", ".pth")  # members of an archive that are archives themselves
STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
# What a damaged archive raises: also for sizes beyond 64 bits, and for names that announce names.
DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, OSError, EOFError, zlib.error),
    *(OverflowError, RecursionError),
)


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


def text_lines(file: Path) -> Iterator[bytes]:
    """The lines of a table of text. ValueError where it is no text, or holds one that is rather an
    attack on the memory.
    """
    before = 0
    with file.open("rb") as stream:
        check_text(file, stream.read(BLOCK))
        stream.seek(0)
        while line := stream.readline(LONGEST_LINE + 1):
            check_text(file, line, before)
            if len(line) > LONGEST_LINE:
                raise ValueError(f"{file}: a line of more than {LONGEST_LINE >> 20} MB")
            before += len(line)
            yield line


def check_text(file: Path, content: bytes, before: int = 0) -> None:
    """ValueError where a part of a file, behind so many bytes, holds what no text in UTF-8 does."""
    if (place := content.find(0)) >= 0:
        raise ValueError(f"{file} is no text in UTF-8: byte {before + place} is 0")


def check_lines(file: Path) -> None:
    """ValueError where JSON lines hold lists in lists so deep that a reader that recurs would crash
    the interpreter; else as `text_lines`.
    """
    depth = 0
    for line in text_lines(file):
        begun = line.count(b"[") + line.count(b"{")
        if begun == line.count(b"]") + line.count(b"}") and depth + begun <= DEEPEST:
            continue  # else look at it closer, as brackets stand in texts, too
        for mark in STRING.sub(b"", line).translate(None, NO_BRACKETS):
            depth += 1 if mark in b"[{" else -1
            if depth > DEEPEST:
                raise ValueError(f"{file} holds lists in lists, more than {DEEPEST} deep")


def _unpacked(archive: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    """The bytes that an archive inside the archive says that it holds."""
    inner = archive.extractfile(member) if member.name.lower().endswith(ZIPS) else None
    if inner is None or not zipfile.is_zipfile(inner):
        return 0
    with zipfile.ZipFile(inner) as members:
        return sum(one.file_size for one in members.infolist())


def check_archive(file: Path) -> None:
    """`check_bytes` of all members of a tar archive, packed or not: a sparse member may say any
    size. ValueError also where it is damaged.
    """
    held = 0
    try:
        with tarfile.open(file) as archive:
            while (member := archive.next()) is not None:
                held += member.size + _unpacked(archive, member)
                check_bytes(file, held)
    except DAMAGED as error:
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
