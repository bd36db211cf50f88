"""Images in .npz files; what such a file says of itself is believed only within bounds."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from tests.data.picture_files import made

from fewstep.data.npz import Npz

IMAGES, LABELS = made(30, shape=(3, 5, 7))
PIXELS = IMAGES.transpose(0, 2, 3, 1)


def read(path):
    return Npz(path=str(path), split="all").dataset()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("labelled", [True, False])
def test_images_and_labels(tmp_path, save, labelled):
    save(tmp_path / "x.npz", PIXELS, *([LABELS] if labelled else []))
    dataset = read(tmp_path / "x.npz")
    assert np.array_equal(dataset.images.numpy(), IMAGES)
    assert dataset.shape == (3, 5, 7)
    assert dataset.classes == (10 if labelled else 0)
    assert dataset.labels is None or dataset.labels.tolist() == LABELS.tolist()


def test_columns_first_in_memory(tmp_path):
    np.savez(tmp_path / "x.npz", np.asfortranarray(PIXELS))
    assert np.array_equal(read(tmp_path / "x.npz").images.numpy(), IMAGES)


@pytest.mark.parametrize("place", range(150, 3200, 371))
def test_a_flipped_bit_of_the_pixels_is_seen(tmp_path, place):
    np.savez(tmp_path / "x.npz", PIXELS, LABELS)
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[place] ^= 4
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz"):
        read(tmp_path / "x.npz")


def header(text, version=1):
    """The beginning of an array's file."""
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode()


def described(shape, kind="|u1"):
    return header(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n")


def archive(content, method=zipfile.ZIP_DEFLATED):
    """A .npz file whose arr_0 is this content."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as members:
        members.writestr("arr_0.npy", content)
    return out.getvalue()


def encrypted(content):
    """The same archive with the bits that say so."""
    changed = bytearray(content)
    changed[6] |= 1
    changed[changed.index(b"PK\1\2") + 8] |= 1
    return bytes(changed)


def of_method(content, number):
    """The same archive, packed in a way that it names."""
    changed = bytearray(content)
    place = changed.index(b"PK\1\2") + 10
    changed[8:10] = changed[place : place + 2] = struct.pack("<H", number)
    return bytes(changed)


def saved(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


WHOLE = archive(saved(PIXELS))
DAMAGED = {
    "an array alone": saved(PIXELS),
    "encrypted": encrypted(WHOLE),
    "unknown packing": of_method(WHOLE, 99),
    "lzma": archive(saved(PIXELS), zipfile.ZIP_LZMA),
    "brackets": archive(header("(" * 9000)),
    "many brackets": archive(header("(" * 30_000)),
    "sums": archive(header("-" * 9000 + "1")),
    "digits": archive(described(f"({'9' * 5000}, 8, 8, 1)")),
    "long header": archive(header(" " * (1 << 20), 2)),
    "negative": archive(described("(-1, 8, 8, 1)") + bytes(64)),
    "no numbers": archive(described("('a', 8, 8, 1)")),
    "objects": archive(described("(1, 8, 8, 1)", "|O")),
    "too short": archive(described("(3, 8, 8, 1)") + bytes(64)),
    "too long": archive(described("(3, 8, 8, 1)") + bytes(300)),
    "no magic": archive(b"hello"),
    "cut": WHOLE[:-30],
    "text": b"hello",
    "empty": b"",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_is_damaged_or_forged(tmp_path, kind):
    (tmp_path / "x.npz").write_bytes(DAMAGED[kind])
    with pytest.raises(ValueError, match=r"x\.npz is damaged or no \.npz file of numpy") as error:
        read(tmp_path / "x.npz")
    assert "allow_pickle" not in str(error.value)  # advice that is not for who reads images


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": PIXELS}, r"no arr_0 in it; np\.savez\(FILE, images, labels\) writes it"),
        ({"arr_0": PIXELS[0]}, r"arr_0 must be .*\(5, 7, 3\) uint8"),
        ({"arr_0": PIXELS / 255}, "arr_0 must be .* float64"),
        ({"arr_0": PIXELS[:, :0]}, r"arr_0 must be .*\(30, 0, 7, 3\)"),
        ({"arr_0": PIXELS, "arr_1": LABELS[:, None]}, r"arr_1 must be .*\(30, 1\)"),
        ({"arr_0": PIXELS, "arr_1": LABELS / 2}, "arr_1 must be .* float64"),
        ({"arr_0": PIXELS, "arr_1": LABELS[:7]}, "7 labels for 30 images"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, arrays, says):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=rf"x\.npz.*{says}"):
        read(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "content",
    [
        described("(3000, 1024, 1024, 1)") + bytes(13 << 20),
        described(f"({'9' * 4000}, {'9' * 4000}, 8, 1)"),
        described("(1000000000000, 8, 8, 1)"),
    ],
    ids=["zeros", "digits", "forged"],
)
def test_more_than_it_may_hold(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(archive(content))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"x\.npz says that it holds .* more than 512 MB"):
        read(tmp_path / "x.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


def test_other_arrays_are_named(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=PIXELS, labels=LABELS, note=np.zeros(1))
    dataset = read(tmp_path / "x.npz")
    assert dataset.labels is None
    assert dataset.notes["arrays not used"] == "labels, note"
