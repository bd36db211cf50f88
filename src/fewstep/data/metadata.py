"""What stands in picture files beside the pixels: it turns a picture, and decides nothing else."""

import contextlib
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import Image

ORIENTATION, SWAPS_SIDES = 0x0112, 5  # EXIF's tag, and its first value that swaps the sides
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
SCAN, COMMENT = 0xDA, 0xFE
EXIF = b"Exif\0\0"


@contextlib.contextmanager
def unwarned() -> Iterator[None]:
    """Pillow's warnings of pictures' metadata stay unsaid: such pictures are counted. Not for a
    thread alone: filters are the process's.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def orientation(image: Any) -> tuple[int, bool]:
    """How a picture is to be turned, 1 … 8, and whether what its file says of it can be read."""
    try:
        tags = image.getexif()
        found = tags.get(ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # damaged content makes Pillow raise nearly every type there is
        return 1, False
    if not isinstance(found, int) or not 0 <= found <= 8:
        return 1, False
    empty = bool(image.info.get("exif")) and not len(tags)
    return max(found, 1), not empty


def without_metadata(content: bytes) -> bytes:
    """The file of a picture without what does not decide its pixels, but for a whole EXIF.

    Of a PNG file critical chunks and transparency are kept; of a JPEG file all segments but those
    of applications and comments, and of those the two that say how colours are stored.
    """
    if content.startswith(PNG):
        return _png_pixels(content)
    if content.startswith(JPEG):
        return _jpeg_pixels(content)
    return content


def _png_pixels(content: bytes) -> bytes:
    kept, place = [PNG], len(PNG)
    while place < len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")
        name, checksum = content[place + 4 : place + 8], content[end - 4 : end]
        whole = zlib.crc32(content[place + 4 : end - 4]).to_bytes(4, "big") == checksum
        if name[:1].isupper() or name == b"tRNS" or (name == b"eXIf" and whole):
            kept.append(content[place:end])
        place = end
    return b"".join(kept)


def _jpeg_pixels(content: bytes) -> bytes:
    kept, place = [JPEG], len(JPEG)
    while content[place : place + 1] == b"\xff" and content[place + 1 : place + 2] != b"\xda":
        marker = content[place + 1] if place + 1 < len(content) else 0
        end = place + 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        if marker == 0xFF:  # a byte that fills up
            end = place + 1
        if _decides(marker, content[place + 4 : end]):
            kept.append(content[place:end])
        place = end
    return b"".join(kept) + content[place:]


def _decides(marker: int, segment: bytes) -> bool:
    """Whether a segment of a JPEG file says something of its pixels, or of how they are turned."""
    if marker == 0xE0:
        return segment.startswith(b"JFIF\0") and len(segment) >= 14
    if marker == 0xE1:
        return segment.startswith(EXIF)
    if marker == 0xEE:
        return segment.startswith(b"Adobe") and len(segment) >= 12
    return not (0xE0 <= marker <= 0xEF or marker == COMMENT)
