"""One IDX file: a header with the sizes, then bytes; plain or gzipped."""

import math
import struct
import zlib
from pathlib import Path

import numpy as np

from fewstep.data.bounds import check_bytes, memory_for
from fewstep.data.source import unpacked

LABELS, IMAGES, COLOURS = 1, 3, 4  # numbers of dimensions, as the magic number has them
BYTES = 8  # the type of numbers, as the magic number has it

Sizes = tuple[int, ...]


def header(file: Path) -> Sizes | str:
    """The sizes that an IDX file of bytes announces; for any other file, why it is none."""
    if not file.is_file():
        return "it is a folder" if file.is_dir() else "it is a link to nothing, or a special file"
    try:
        with unpacked(file) as stream:
            magic = stream.read(4)
            sizes = stream.read(4 * magic[3]) if len(magic) == 4 else b""
    except (OSError, EOFError, zlib.error) as error:
        return f"it is damaged or cannot be read: {error}"
    if len(magic) < 4:
        return f"it is cut off after {len(magic)} bytes" if magic else "it is empty"
    if magic[:2] != b"\0\0" or magic[2] != BYTES or magic[3] not in (LABELS, IMAGES, COLOURS):
        return f"it does not begin as IDX files of bytes do, but with {magic.hex(' ')}"
    if len(sizes) < 4 * magic[3]:
        return f"it is cut off within its header, after {4 + len(sizes)} bytes"
    return struct.unpack(f">{magic[3]}I", sizes)


def read_idx(
    file: Path, dimensions: tuple[int, ...]
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The content of an IDX file. ValueError, with its name and why, where it cannot be read or has
    none of these numbers of dimensions.
    """
    sizes = header(file)
    if isinstance(sizes, str):
        raise ValueError(f"{file} cannot be read: {sizes}")
    if len(sizes) not in dimensions:
        wanted = " or ".join(map(str, dimensions))
        raise ValueError(f"{file} has {len(sizes)} dimensions, expected {wanted}")
    wanted_bytes, content = math.prod(sizes), bytearray()
    if 0 in sizes[1:]:
        raise ValueError(f"{file}: its header announces images of {'×'.join(map(str, sizes[1:]))}")
    check_bytes(file, wanted_bytes)
    try:
        with memory_for(file), unpacked(file) as stream:
            stream.read(4 + 4 * len(sizes))
            # In pieces: a forged header must not reserve more memory than the file has bytes.
            while len(content) <= wanted_bytes and (
                part := stream.read(min(1 << 24, wanted_bytes + 1 - len(content)))
            ):
                content += part
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} is damaged or cut off: {error}") from None
    if len(content) != wanted_bytes:
        raise ValueError(
            f"{file} is cut off or too long: its header announces {wanted_bytes} bytes, it has "
            f"{len(content)}"
        )
    return np.frombuffer(content, np.uint8).reshape(sizes)
