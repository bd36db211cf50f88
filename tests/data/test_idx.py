"""IDX files: what is found is used and named; damage is a ValueError that names the file."""

import gzip
import struct

import numpy as np
import pytest
import torch
from tests.data.idx_files import idx_bytes, write_idx, write_pair

from fewstep.data.idx import Idx
from fewstep.data.labels import UNLABELLED
from fewstep.data.source import Source

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def read(path, **options):
    return Idx(path=str(path), **options).read()


@pytest.mark.parametrize("packed", [False, True])
def test_a_pair(tmp_path, packed):
    images, labels = write_pair(tmp_path, 20, packed=packed)
    dataset = read(tmp_path)
    assert dataset.shape == (1, 8, 8)
    assert dataset.images.dtype == torch.uint8
    assert np.array_equal(dataset.images[:, 0].numpy(), images)
    assert dataset.labels.tolist() == labels.tolist()
    assert dataset.labels.dtype == torch.int64
    assert dataset.ids.tolist() == list(range(20))
    assert dataset.classes == 10
    assert IMAGES in dataset.notes["images file"]
    assert LABELS in dataset.notes["labels file"]


def test_gzip_is_known_by_its_content_not_its_name(tmp_path):
    images, labels = write_pair(tmp_path, 6)
    (tmp_path / IMAGES).write_bytes(gzip.compress(idx_bytes(images)))
    (tmp_path / f"{LABELS}.gz").write_bytes((tmp_path / LABELS).read_bytes())
    (tmp_path / LABELS).unlink()
    dataset = read(tmp_path)
    assert np.array_equal(dataset.images[:, 0].numpy(), images)
    assert dataset.labels.tolist() == labels.tolist()


def test_the_largest_of_several_pairs_is_used_and_named(tmp_path):
    write_pair(tmp_path, 10, "t10k", seed=1)
    images, _ = write_pair(tmp_path, 30, "train", seed=2)
    write_pair(tmp_path, 20, "a-extra", seed=3, packed=True)
    dataset = read(tmp_path)
    assert np.array_equal(dataset.images[:, 0].numpy(), images)
    assert dataset.notes["images file"] == str(tmp_path / IMAGES)
    assert dataset.notes["labels file"] == str(tmp_path / LABELS)


@pytest.mark.parametrize("name", ["t10k", "train"])
def test_a_single_file_takes_its_own_labels(tmp_path, name):
    write_pair(tmp_path, 30, "train", seed=2)
    images, labels = write_pair(tmp_path, 10, "t10k", seed=1)
    if name == "train":
        images, labels = write_pair(tmp_path, 30, "train", seed=2)
    dataset = read(tmp_path / f"{name}-images-idx3-ubyte")
    assert np.array_equal(dataset.images[:, 0].numpy(), images)
    assert dataset.labels.tolist() == labels.tolist()


def test_names_of_the_kin_of_mnist(tmp_path):
    images, labels = write_pair(tmp_path, 12)
    for old, new in (
        (IMAGES, "emnist-letters-train-images-idx3-ubyte"),
        (LABELS, "emnist-letters-train-labels-idx1-ubyte"),
    ):
        (tmp_path / old).rename(tmp_path / new)
    dataset = read(tmp_path, classes=26)
    assert dataset.classes == 26
    assert np.array_equal(dataset.images[:, 0].numpy(), images)
    assert dataset.labels.tolist() == labels.tolist()


def test_images_without_labels(tmp_path):
    images, _ = write_pair(tmp_path, 9)
    (tmp_path / LABELS).unlink()
    dataset = read(tmp_path)
    assert dataset.labels is None
    assert len(dataset) == 9
    assert dataset.notes["labels file"] == "none"
    assert np.array_equal(dataset.select(torch.tensor([3])).images[0, 0].numpy(), images[3])
    assert len(dataset.fingerprint()) == 16


def test_labels_of_another_pair_are_not_taken(tmp_path):
    write_pair(tmp_path, 9)
    (tmp_path / LABELS).rename(tmp_path / "t10k-labels-idx1-ubyte")
    assert read(tmp_path).labels is None


def test_colour(tmp_path):
    """4-dimensional files hold (n, height, width, channels)."""
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    write_idx(tmp_path / "train-images-idx4-ubyte", images)
    write_idx(tmp_path / LABELS, np.arange(5))
    dataset = read(tmp_path)
    assert dataset.shape == (3, 4, 6)
    assert dataset.images[2, 1, 3, 5] == images[2, 3, 5, 1]
    assert np.array_equal(dataset.images.permute(0, 2, 3, 1).numpy(), images)
    assert dataset.labels.tolist() == [0, 1, 2, 3, 4]
    assert dataset.images.is_contiguous()


def test_foreign_files_are_ignored(tmp_path):
    images, _ = write_pair(tmp_path, 7)
    (tmp_path / "README.md").write_text("notes")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "short").write_bytes(b"\0\0")
    (tmp_path / "noise.gz").write_bytes(b"\x1f\x8b" + bytes(range(40)))
    (tmp_path / "floats-images-idx3").write_bytes(
        b"\0\0\x0d\x03" + struct.pack(">3I", 99, 2, 2) + bytes(99 * 16)
    )
    (tmp_path / "sub").mkdir()
    assert np.array_equal(read(tmp_path).images[:, 0].numpy(), images)


def test_nothing_found(tmp_path):
    with pytest.raises(ValueError, match=r"data\.path"):
        Idx().read()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no IDX images.*nothing"):
        read(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"no IDX images.*notes\.txt"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"notes\.txt"):
        read(tmp_path / "notes.txt")
    write_idx(tmp_path / LABELS, np.arange(4))
    with pytest.raises(ValueError, match="no IDX images"):
        read(tmp_path)


def broken(folder, content):
    """A folder with a pair whose images file has this content."""
    write_pair(folder, 20)
    (folder / IMAGES).write_bytes(content)
    return folder


WHOLE = idx_bytes(np.random.default_rng(0).integers(0, 256, (20, 8, 8)))


@pytest.mark.parametrize("length", [4, 9, 15])
def test_a_truncated_header(tmp_path, length):
    with pytest.raises(ValueError, match=IMAGES):
        read(broken(tmp_path, WHOLE[:length]))


@pytest.mark.parametrize("length", [16, 17, len(WHOLE) - 1])
def test_a_truncated_body(tmp_path, length):
    with pytest.raises(ValueError, match=rf"{IMAGES}.*1280 bytes.*has {length - 16}"):
        read(broken(tmp_path, WHOLE[:length]))


@pytest.mark.parametrize("packed", [False, True])
def test_trailing_bytes(tmp_path, packed):
    content = WHOLE + b"\0"
    with pytest.raises(ValueError, match=f"{IMAGES}.*too long"):
        read(broken(tmp_path, gzip.compress(content) if packed else content))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_gzip(tmp_path, share):
    packed = gzip.compress(WHOLE)
    with pytest.raises(ValueError, match=IMAGES):
        read(broken(tmp_path, packed[: int(share * len(packed))]))


def test_a_damaged_gzip(tmp_path):
    packed = bytearray(gzip.compress(WHOLE))
    packed[-6] ^= 1  # the checksum
    with pytest.raises(ValueError, match=IMAGES):
        read(broken(tmp_path, bytes(packed)))


@pytest.mark.parametrize(
    "sizes", [(2**31 + 5, 8, 8), (2**31, 2**31, 4), (2**32 - 1, 2**32 - 1, 2**32 - 1)]
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_header_that_announces_more_than_memory(tmp_path, sizes, packed):
    """A forged header must cost a message, not the memory; products beyond 64 bits must not wrap to
    a small number.
    """
    content = b"\0\0\x08\x03" + struct.pack(">3I", *sizes) + bytes(8)
    with pytest.raises(ValueError, match=IMAGES):
        read(broken(tmp_path, gzip.compress(content) if packed else content))
    empty = content[:16]
    with pytest.raises(ValueError, match=IMAGES):
        read(broken(tmp_path, gzip.compress(empty) if packed else empty))


def test_damaged_labels(tmp_path):
    write_pair(tmp_path, 20)
    (tmp_path / LABELS).write_bytes((tmp_path / LABELS).read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{LABELS}.*20 bytes"):
        read(tmp_path)


def test_counts_that_differ(tmp_path):
    write_pair(tmp_path, 20)
    write_idx(tmp_path / LABELS, np.arange(7))
    with pytest.raises(ValueError, match=f"{LABELS} has 7 labels for the 20 images of .*{IMAGES}"):
        read(tmp_path)


def test_labels_out_of_range_name_the_first(tmp_path):
    write_pair(tmp_path, 20)
    labels = np.arange(20) % 10
    labels[[4, 11]] = 12, 200
    write_idx(tmp_path / LABELS, labels)
    with pytest.raises(ValueError, match=rf"{LABELS}.*2 labels out of range 0 … 9.*12 of image 4"):
        read(tmp_path)
    assert read(tmp_path, classes=201).labels[11] == 200


def test_the_split_of_the_first_images_does_not_depend_on_their_number(tmp_path):
    """The split is chosen by place, so a longer file of the same kind keeps the split of its
    beginning.
    """
    write_pair(tmp_path / "short", 100)
    write_pair(tmp_path / "long", 200)
    short = Idx(path=str(tmp_path / "short")).dataset("test").ids.tolist()
    long = Idx(path=str(tmp_path / "long")).dataset("test").ids.tolist()
    assert short == [i for i in long if i < 100]


PLAIN = idx_bytes(np.arange(20) % 10)
ONE_BIT = bytes([PLAIN[0], PLAIN[1], PLAIN[2] ^ 1]) + PLAIN[3:]
PACKED = bytearray(gzip.compress(PLAIN))
PACKED[12] ^= 1
UNREADABLE = {
    "empty": b"",
    "cut within gzip's header": gzip.compress(PLAIN)[:14],
    "a byte of the packed data": bytes(PACKED),
    "a bit of the magic number": ONE_BIT,
    "a page": b"<!DOCTYPE html><html>not found</html>",
    "four bytes": PLAIN[:4],
    "three bytes": PLAIN[:3],
    "whole numbers of 32 bits": b"\0\0\x0c\x01" + struct.pack(">I", 20) + bytes(80),
    "two dimensions": b"\0\0\x08\x02" + struct.pack(">2I", 20, 8) + bytes(160),
    "images": WHOLE,
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("name", [LABELS, f"{LABELS}.gz", "train-labels.idx1-ubyte"])
def test_labels_that_cannot_be_read_are_not_absent(tmp_path, content, name):
    write_pair(tmp_path, 20)
    write_pair(tmp_path, 10, "t10k")
    (tmp_path / LABELS).unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}.*(it |dimensions|damaged)"):
        read(tmp_path)
    assert Source.kind_at(tmp_path) == "idx"
    dataset = read(tmp_path, label="none")
    assert (len(dataset), dataset.labels) == (20, None)


@pytest.mark.parametrize("content", [*UNREADABLE.values(), PLAIN], ids=[*UNREADABLE, "labels"])
@pytest.mark.parametrize("name", [IMAGES, f"{IMAGES}.gz"])
def test_training_images_that_cannot_be_read_are_not_replaced_by_the_test_set(
    tmp_path, content, name
):
    write_pair(tmp_path, 20)
    write_pair(tmp_path, 30, "t10k")
    (tmp_path / IMAGES).unlink()
    if content is WHOLE:  # it is what it should be
        content = content[:-1]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        read(tmp_path)


def test_a_pair_of_which_one_is_no_file(tmp_path):
    write_pair(tmp_path, 20)
    (tmp_path / LABELS).unlink()
    (tmp_path / LABELS).mkdir()
    with pytest.raises(ValueError, match=f"{LABELS}.*it is a folder"):
        read(tmp_path)
    (tmp_path / LABELS).rmdir()
    (tmp_path / LABELS).symlink_to("nowhere")
    with pytest.raises(ValueError, match=f"{LABELS}.*link to nothing"):
        read(tmp_path)
    (tmp_path / LABELS).unlink()
    (tmp_path / f"{LABELS}.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=f"{LABELS}.zip cannot be read"):
        read(tmp_path)
    (tmp_path / LABELS).write_bytes(PLAIN)  # the packed one is of no use any more
    dataset = read(tmp_path)
    assert dataset.labels.tolist() == list(np.arange(20) % 10)
    assert f"({LABELS}.zip)" in dataset.notes["passed over"]


def test_training_labels_without_their_images(tmp_path):
    write_pair(tmp_path, 20)
    write_pair(tmp_path, 10, "t10k")
    (tmp_path / IMAGES).unlink()
    with pytest.raises(ValueError, match=f"{LABELS} cannot be read as training data"):
        read(tmp_path)
    assert len(read(tmp_path / "t10k-images-idx3-ubyte")) == 10


@pytest.mark.parametrize(("training", "tests"), [("x-train", "x-test"), ("z_Training", "a_dev")])
def test_the_training_pair_goes_first_whatever_its_size_and_name(tmp_path, training, tests):
    images, labels = write_pair(tmp_path, 20, training, seed=1)
    write_pair(tmp_path, 20, tests, seed=2)
    write_pair(tmp_path, 30, "other", seed=3)
    dataset = read(tmp_path)
    assert np.array_equal(dataset.images[:, 0].numpy(), images)
    assert dataset.labels.tolist() == labels.tolist()
    assert "not used: 4 (" in dataset.notes["passed over"]


def test_sets_alike_are_named_not_chosen(tmp_path):
    write_pair(tmp_path, 20, "letters-train", seed=1)
    write_pair(tmp_path, 20, "digits-train", seed=2)
    with pytest.raises(ValueError, match=r"letters-train-.*digits-train-.*|digits-.*letters-"):
        read(tmp_path)
    write_pair(tmp_path / "tests", 20, "t10k")
    write_pair(tmp_path / "tests", 30, "val")
    with pytest.raises(ValueError, match=r"data\.path= names the file of one"):
        read(tmp_path / "tests")


def test_labels_under_another_name(tmp_path):
    """As many labels as images, and nothing else that they belong to."""
    write_pair(tmp_path, 20)
    (tmp_path / LABELS).rename(tmp_path / "classes-idx1-ubyte")
    with pytest.raises(ValueError, match=r"classes-idx1-ubyte has as many labels as .*label=none"):
        read(tmp_path)
    assert read(tmp_path, label="none").labels is None


def test_images_without_labels_beside_a_pair(tmp_path):
    write_pair(tmp_path, 20)
    write_pair(tmp_path, 10, "t10k")
    (tmp_path / LABELS).unlink()
    told = rf"{IMAGES} has no labels.*t10k-labels-idx1-ubyte\): expected {LABELS}; label=none"
    with pytest.raises(ValueError, match=told):
        read(tmp_path)
    dataset = read(tmp_path, label="none")
    assert (len(dataset), dataset.labels) == (20, None)


def test_unlabelled(tmp_path):
    """-1 as a byte."""
    write_pair(tmp_path, 20)
    write_idx(tmp_path / LABELS, np.full(20, 255))
    dataset = read(tmp_path)
    assert (dataset.labels, len(dataset)) == (None, 20)
    assert dataset.notes["labels file"].endswith(f"{LABELS}: {UNLABELLED}")
    write_idx(tmp_path / LABELS, np.array([255] * 19 + [3]))
    with pytest.raises(ValueError, match="19 labels out of range"):
        read(tmp_path)


def test_what_was_not_used_is_named(tmp_path):
    write_pair(tmp_path, 7)
    write_pair(tmp_path, 3, "t10k")
    (tmp_path / "README.md").write_text("notes")
    (tmp_path / "broken-images-idx3-ubyte").write_bytes(b"")
    assert read(tmp_path).notes["passed over"] == (
        ".md: 1 (README.md); it is empty: 1 (broken-images-idx3-ubyte); "
        "not used: 2 (t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte)"
    )
