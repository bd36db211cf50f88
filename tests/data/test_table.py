"""Parquet files of pictures: what is in the columns, and damage that is named by file and row."""

import builtins
import sys

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from tests.data.picture_files import encoded, made, write_parquet

from fewstep.data.table import Table

IMAGES, LABELS = made(12, 4, (3, 8, 10))
CONTENTS = [encoded(image) for image in IMAGES]


def read(path, **options):
    return Table(path=str(path), **options).read()


@pytest.mark.parametrize("column", ["img", "image"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_pictures_and_labels(tmp_path, column, packed, form):
    contents = [encoded(image, form) for image in IMAGES]
    file = write_parquet(tmp_path / "train.parquet", contents, column, packed, label=LABELS)
    dataset = read(file)
    assert np.array_equal(dataset.images.numpy(), IMAGES)
    assert dataset.labels.tolist() == LABELS.tolist()
    assert (dataset.classes, dataset.ids.tolist()) == (4, list(range(12)))
    assert dataset.notes == {"files": str(file), "class names": "unknown"}


def test_grey_pictures_have_one_channel(tmp_path):
    images, _ = made(5, shape=(1, 6, 6))
    write_parquet(tmp_path / "x.parquet", map(encoded, images))
    dataset = read(tmp_path)
    assert np.array_equal(dataset.images.numpy(), images)
    assert (dataset.labels, dataset.classes) == (None, 0)
    assert read(tmp_path, channels="rgb").shape == (3, 6, 6)


def test_sizes(tmp_path):
    write_parquet(tmp_path / "x.parquet", [*CONTENTS, encoded(made(1, shape=(3, 8, 8))[0][0])])
    with pytest.raises(
        ValueError, match=r"x\.parquet row 0 of 8×10 and .*x\.parquet row 12 of 8×8: size=N"
    ):
        read(tmp_path)
    assert np.array_equal(read(tmp_path, size=8).images[:12].numpy(), IMAGES[..., 1:9])


def test_all_training_files_by_name_whatever_their_row_groups(tmp_path):
    for i in (1, 0, 2):
        rows = slice(4 * i, 4 * i + 4)
        write_parquet(
            tmp_path / "data" / f"train-{i}-of-3.parquet", CONTENTS[rows], label=LABELS[rows]
        )
    file = tmp_path / "data" / "train-1-of-3.parquet"
    parquet.write_table(parquet.read_table(file), file, row_group_size=1)
    write_parquet(tmp_path / "data" / "test-0-of-1.parquet", CONTENTS[:2], label=LABELS[:2])
    dataset = read(tmp_path)
    assert np.array_equal(dataset.images.numpy(), IMAGES)
    assert dataset.labels.tolist() == LABELS.tolist()
    assert dataset.notes["files"] == ", ".join(
        str(tmp_path / "data" / f"train-{i}-of-3.parquet") for i in range(3)
    )


@pytest.mark.parametrize("name", ["test/0.parquet", "validation-0-of-1.parquet", "my_test.parquet"])
def test_test_files_are_used_where_there_are_no_others(tmp_path, name):
    file = write_parquet(tmp_path / "x" / name, CONTENTS[:2], label=LABELS[:2])
    assert read(tmp_path / "x").notes["files"] == str(file)
    other = write_parquet(tmp_path / "x" / "latest.parquet", CONTENTS, label=LABELS)
    assert read(tmp_path / "x").notes["files"] == str(other)
    assert len(read(file)) == 2


def test_the_column_of_labels(tmp_path):
    other = (LABELS + 1) % 4
    write_parquet(tmp_path / "x.parquet", CONTENTS, fine_label=LABELS, shape=other, word=["a"] * 12)
    dataset = read(tmp_path)
    assert dataset.labels.tolist() == LABELS.tolist()
    assert dataset.notes["columns not used"] == "shape, word"
    assert read(tmp_path, label="shape").labels.tolist() == other.tolist()
    with pytest.raises(
        ValueError, match=r"x\.parquet .*no column colour, only img, fine_label, shape, word"
    ):
        read(tmp_path, label="colour")
    words = ["cat", "ant", "bee"] * 4
    write_parquet(tmp_path / "x.parquet", CONTENTS, word=words, real=[0.5] * 12)
    dataset = read(tmp_path, label="word")
    assert (dataset.labels.tolist(), dataset.classes) == ([2, 0, 1] * 4, 3)
    assert dataset.notes["class names"] == "ant, bee, cat"
    with pytest.raises(ValueError, match=r"x\.parquet row 0: real is 0\.5, no class"):
        read(tmp_path, label="real")
    assert read(tmp_path, label="none").labels is None


def test_names_of_classes_tell_their_number(tmp_path):
    words = ["ant", "bee", "cat", "dog", "eel"]
    write_parquet(tmp_path / "x.parquet", CONTENTS, label=LABELS, names={"label": words})
    dataset = read(tmp_path)
    assert (dataset.classes, dataset.notes["class names"]) == (5, "ant, bee, cat, dog, eel")
    write_parquet(tmp_path / "x.parquet", CONTENTS, label=LABELS, names={"label": words[:2]})
    with pytest.raises(
        ValueError,
        match=r"x\.parquet: column label: 6 labels out of range 0 … 1, the first is 3 of image 1",
    ):
        read(tmp_path)


@pytest.mark.parametrize("missing", [0, 7])
def test_a_row_without_a_label(tmp_path, missing):
    numbers = [None if i == missing else int(n) for i, n in enumerate(LABELS)]
    write_parquet(tmp_path / "x.parquet", CONTENTS, label=numbers)
    with pytest.raises(ValueError, match=rf"x\.parquet row {missing} has no label"):
        read(tmp_path)


def test_labels_in_some_files_only(tmp_path):
    write_parquet(tmp_path / "a.parquet", CONTENTS, label=LABELS)
    write_parquet(tmp_path / "b.parquet", CONTENTS)
    with pytest.raises(
        ValueError, match=r"columns in some files only, label: .*a\.parquet, .*b\.parquet"
    ):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"x", None])
def test_a_bad_picture_is_named_with_its_row(tmp_path, content):
    write_parquet(tmp_path / "a.parquet", CONTENTS * 10, label=np.tile(LABELS, 10))
    bad = [*CONTENTS[:5], content, *CONTENTS[6:]]
    write_parquet(tmp_path / "b.parquet", bad, label=LABELS)
    with pytest.raises(ValueError, match=r"1 of 132 .* the first is .*b\.parquet row 5: "):
        read(tmp_path)
    dataset = read(tmp_path, on_bad="skip")
    left = [i for i in range(132) if i != 125]
    assert dataset.notes["bad"].startswith(f"1 of 132: {tmp_path / 'b.parquet'} row 5: it ")
    assert np.array_equal(dataset.images.numpy(), np.tile(IMAGES, (11, 1, 1, 1))[left])
    assert dataset.labels.tolist() == np.tile(LABELS, 11)[left].tolist()
    assert dataset.ids.tolist() == left


def test_a_bad_picture_moves_no_other_to_another_split(tmp_path):
    """Also the labels stay with their pictures: the place in the file, not that among the good
    ones, decides.
    """
    contents, labels = CONTENTS * 10, np.tile(LABELS, 10)
    write_parquet(tmp_path / "whole.parquet", contents, label=labels)
    write_parquet(tmp_path / "bad.parquet", [b"", *contents[1:]], label=labels)
    for split in ("train", "test"):
        whole = Table(path=str(tmp_path / "whole.parquet")).dataset(split).ids.tolist()
        less = Table(path=str(tmp_path / "bad.parquet"), on_bad="skip").dataset(split).ids.tolist()
        assert less == [i for i in whole if i != 0]


@pytest.mark.parametrize("on_bad", ["error", "skip"])
def test_a_flipped_bit_in_a_page_with_a_checksum(tmp_path, on_bad):
    file = write_parquet(tmp_path / "x.parquet", CONTENTS, label=LABELS)
    content = bytearray(file.read_bytes())
    content[content.index(CONTENTS[6]) + 60] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.parquet is damaged.*(CRC|checksum)"):
        read(tmp_path, on_bad=on_bad)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_a_cut_file(tmp_path, share):
    file = write_parquet(tmp_path / "x.parquet", CONTENTS, label=LABELS)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(ValueError, match=r"x\.parquet is damaged"):
        read(tmp_path)


def test_files_of_something_else(tmp_path):
    file = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"note": ["a"], "label": [1]}), file)
    lacks = "no column img or image of pictures, nor caption, text, prompt of texts"
    with pytest.raises(ValueError, match=rf"x\.parquet has {lacks}, only note, label"):
        read(file)
    for column in (["a"], [1]):
        parquet.write_table(pyarrow.table({"image": column, "label": [1]}), file)
        with pytest.raises(ValueError, match=r"x\.parquet row 0: "):
            read(file)
    parquet.write_table(pyarrow.table({"image": pyarrow.array([], pyarrow.binary())}), file)
    with pytest.raises(ValueError, match=r"no rows.*x\.parquet"):
        read(file)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no Parquet, .* files in .*nothing"):
        read(tmp_path / "empty")


def test_without_datasets_the_extra_is_named(tmp_path, monkeypatch):
    file = write_parquet(tmp_path / "x.parquet", CONTENTS)
    usual = builtins.__import__

    def without(name, *rest):
        if name.startswith("datasets"):
            raise ImportError(name)
        return usual(name, *rest)

    for name in [name for name in sys.modules if name.startswith("datasets")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=rf"{file}: .*pip install 'fewstep\[data\]'"):
        read(tmp_path)
