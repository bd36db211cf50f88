"""What stands in a picture's file beside its pixels turns it, and decides nothing else."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tests.data.picture_files import encoded, made

from fewstep.data.folder import Folder
from fewstep.data.pictures import ODD, How, decode, decode_all, header

COLOUR = made(1, shape=(3, 20, 30))[0][0]
SEEN = COLOUR.transpose(1, 2, 0)
FILES = {form: encoded(COLOUR, form) for form in ("PNG", "JPEG", "WEBP")}


def chunk(name, content, checksum=None):
    """A chunk of a PNG file."""
    checksum = zlib.crc32(name + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def segment(marker, content):
    """A segment of a JPEG file."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def png(*chunks, place=33):
    return FILES["PNG"][:place] + b"".join(chunks) + FILES["PNG"][place:]


def jpeg(*segments):
    return FILES["JPEG"][:2] + b"".join(segments) + FILES["JPEG"][2:]


def webp(exif):
    """As WebP holds metadata: behind the pixels, announced by a first chunk."""
    sides = struct.pack("<I", 29)[:3] + struct.pack("<I", 19)[:3]
    first = b"VP8X" + struct.pack("<I", 10) + b"\x08\0\0\0" + sides
    last = b"EXIF" + struct.pack("<I", len(exif)) + exif + bytes(len(exif) % 2)
    content = b"WEBP" + first + FILES["WEBP"][12:] + last
    return b"RIFF" + struct.pack("<I", len(content)) + content


WRITERS = {
    "PNG": lambda exif: png(chunk(b"eXIf", exif)),
    "JPEG": lambda exif: jpeg(segment(0xE1, b"Exif\0\0" + exif)),
    "WEBP": webp,
}


def tiff(*entries):
    """The content of EXIF: (tag, type, count, four bytes)."""
    packed = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4)


TURNED_BY_6 = (0x112, 3, 1, b"\6\0\0\0")
TEXTS = (0x11A, 2, 4, b"abc\0"), (0x11B, 2, 4, b"abc\0")
UNREADABLE = {
    "text": b"hello world",
    "header": b"II*\0\x08\0\0\0",
    "cut": tiff(*TEXTS)[:20],
    "loop": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "large": tiff((0x112, 3, 0xFFFFFFFF, b"\xff" * 4)),
    "orientation as text": tiff((0x112, 2, 2, b"6\0\0\0")),
    "orientation of nine": tiff((0x112, 3, 1, b"\x09\0\0\0")),
}


def as_they_are(content):
    """Whether the pixels are those of the file without metadata, and a note counts it."""
    with_it, without = (decode_all([("x", one)], How(), 0) for one in (content, plain(content)))
    assert np.array_equal(with_it[0], without[0])
    assert without[2] == {}
    return with_it[2].get("metadata") == "passed over in 1 of 1 pictures: x"


def plain(content):
    return next(file for file in FILES.values() if file[:2] == content[:2])


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("exif", UNREADABLE)
def test_exif_that_cannot_be_read(form, exif):
    content = WRITERS[form](UNREADABLE[exif])
    assert as_they_are(content)
    assert header(content) == (30, 20, ODD)


@pytest.mark.parametrize("form", WRITERS)
def test_a_resolution_that_is_text(form):
    """It turns as it should: what is to be read of it can be."""
    content = WRITERS[form](tiff(TURNED_BY_6, *TEXTS))
    assert np.array_equal(decode(content), np.rot90(decode(plain(content)), 3))
    assert header(content)[:2] == (20, 30)
    assert np.array_equal(decode(WRITERS[form](tiff(*TEXTS))), decode(plain(content)))


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("value", range(9))
def test_every_orientation(form, value):
    """As Pillow shows it; 0 and 1 leave it as it is."""
    tag = (0x112, 3, 1, struct.pack("<HH", value, 0))
    content, seen = WRITERS[form](tiff(tag)), decode(plain(WRITERS[form](b"")))
    turned = {2: seen[:, ::-1], 3: seen[::-1, ::-1], 4: seen[::-1], 5: seen.transpose(1, 0, 2)}
    turned |= {6: np.rot90(seen, 3), 8: np.rot90(seen)}
    turned |= {7: seen[::-1, ::-1].transpose(1, 0, 2)}
    assert np.array_equal(decode(content), turned.get(value, seen))
    high, wide = decode(content).shape[:2]
    assert header(content) == (wide, high, 0)


@pytest.mark.parametrize("place", [33, -12], ids=["before", "behind"])
@pytest.mark.parametrize("wrong", ["empty", "short", "checksum"])
@pytest.mark.parametrize(
    "name", [b"pHYs", b"gAMA", b"cHRM", b"iCCP", b"zTXt", b"iTXt", b"acTL", b"eXIf", b"vpAg"]
)
def test_chunks_of_a_png_file(name, wrong, place):
    content = b"" if wrong == "empty" else b"\xff"
    as_they_are(png(chunk(name, content, 1 if wrong == "checksum" else None), place=place))


def test_texts_of_a_png_file_that_unpack_to_much():
    for start in (b"zTXtword\0\0", b"iCCPword\0\0"):
        packed = zlib.compress(bytes(5 << 20))
        assert as_they_are(png(chunk(start[:4], start[4:] + packed)))
    assert as_they_are(png(chunk(b"tEXt", b"Raw profile type exif\0\n\n\n\nzz")))


@pytest.mark.parametrize(
    ("marker", "content"),
    [(0xE0, b"JFIF"), (0xE2, b"ICC_PROFILE\0"), (0xEE, b"Adobe"), (0xED, b"8BIM"), (0xFE, b"")],
)
def test_segments_of_a_jpeg_file(marker, content):
    as_they_are(jpeg(segment(marker, content)))


def test_a_whole_exif_still_turns_where_other_metadata_is_damaged():
    turned = np.rot90(SEEN, 3)
    exif = chunk(b"eXIf", tiff(TURNED_BY_6))
    assert np.array_equal(decode(png(exif, chunk(b"pHYs", b""))), turned)
    damaged = jpeg(segment(0xE1, b"Exif\0\0" + tiff(TURNED_BY_6)), segment(0xE2, b"ICC_PROFILE\0"))
    assert np.array_equal(decode(damaged), np.rot90(decode(FILES["JPEG"]), 3))


def test_damaged_pixels_stay_damaged():
    """Passing over metadata must not pass over anything else."""
    content = bytearray(png(chunk(b"pHYs", b"")))
    content[-20] ^= 1
    cut = jpeg(segment(0xE2, b"ICC_PROFILE\0"))[:-300]
    for bad in (bytes(content), cut):
        with pytest.raises(ValueError, match="1 of 1 pictures cannot be read"):
            decode_all([("x", bad)], How(), 0)


def test_colours_of_a_jpeg_file_do_not_change_with_its_metadata():
    """What says how colours are stored is no metadata: CMYK and RGB, as Adobe writes them."""
    out = io.BytesIO()
    Image.fromarray(SEEN).convert("CMYK").save(out, "JPEG", quality=95)
    content = out.getvalue()
    damaged = content[:2] + segment(0xE2, b"ICC_PROFILE\0") + content[2:]
    assert np.array_equal(decode(damaged), decode(content))


def test_a_folder_counts_them(tmp_path):
    for i in range(7):
        (tmp_path / f"{i}.png").write_bytes(png(chunk(b"pHYs", b"")) if i else FILES["PNG"])
    notes = Folder(path=str(tmp_path), split="all").read().notes
    names = ", ".join(f"{tmp_path}/{i}.png" for i in range(1, 6))
    assert notes["metadata"] == f"passed over in 6 of 7 pictures: {names}, …"
