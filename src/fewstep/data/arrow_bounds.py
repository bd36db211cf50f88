"""How much Arrow and Parquet files say that they hold, read from their own headers."""

import struct
from pathlib import Path
from typing import Any

LARGE = 4096  # bytes of a dictionary's entry, as of a picture, that many rows may repeat


def parquet_bytes(file: Path, metadata: Any) -> int:
    """Of all pages, and of rows that repeat large entries of a dictionary."""
    held = 0
    with file.open("rb") as stream:
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            held += group.total_byte_size
            for column in map(group.column, range(group.num_columns)):
                place = column.dictionary_page_offset
                if place is not None and column.physical_type == "BYTE_ARRAY":
                    stream.seek(place)
                    held += column.num_values * _entry(stream.read(64))
    return held


def _entry(page: bytes) -> int:
    """The mean size of a dictionary's entries where they are large, else 0. page: the begin of its
    page: Thrift's compact numbers, each behind the distance to its field and its type.
    """
    field, place, found = 0, 0, {}
    for _ in range(8):
        if place >= len(page) or page[place] & 15 not in (5, 12):
            break
        field += page[place] >> 4
        if page[place] & 15 == 12:  # the header of the dictionary, with fields of its own
            field = 100 * field
            place += 1
            continue
        number, place = _varint(page, place + 1)
        found[field] = number >> 1
    size, entries = found.get(2, 0), found.get(701, 0)
    mean = size // max(entries, 1)
    return mean if mean >= LARGE else 0


def _varint(page: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the place behind it."""
    number = 0
    for shift, byte in enumerate(page[place : place + 10]):
        number |= (byte & 127) << 7 * shift
        if byte < 128:
            return number, place + shift + 1
    return number, place + 10


def arrow_bytes(file: Path) -> int:
    """Of all buffers that are packed, as each says before its content."""
    import pyarrow

    held = 0
    with pyarrow.memory_map(str(file)) as stream:
        if stream.read(6) == b"ARROW1":
            stream.seek(8)
        else:
            stream.seek(0)
        messages = pyarrow.ipc.MessageReader.open_stream(stream)
        while True:
            try:
                message = messages.read_next_message()
            except StopIteration:
                return held
            if message.type in ("record batch", "dictionary"):
                held += _packed(message)


def _packed(message: Any) -> int:
    """Of a message: a FlatBuffer, whose tables name the places of their fields."""
    header = message.metadata.to_pybytes()

    def number(form: str, place: int) -> int:
        found: int = struct.unpack_from(form, header, place)[0]
        return found

    def field(table: int, index: int) -> int:
        """Its place; 0 where it is not there."""
        fields = table - number("<i", table)
        there = 4 + 2 * index < number("<H", fields)
        offset = number("<H", fields + 4 + 2 * index) if there else 0
        return table + offset if offset else 0

    def inner(table: int, index: int) -> int:
        place = field(table, index)
        return place + number("<I", place)

    batch = inner(number("<I", 0), 2)
    if message.type == "dictionary":
        batch = inner(batch, 1)
    if not field(batch, 3):  # not packed
        return 0
    buffers, held = inner(batch, 2), 0
    for place in range(buffers + 4, buffers + 4 + 16 * number("<I", buffers), 16):
        start, length = number("<q", place), number("<q", place + 8)
        if length > 8:
            held += max(*struct.unpack("<q", message.body.slice(start, 8).to_pybytes()), length)
    return held
