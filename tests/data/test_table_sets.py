"""A column of a table that says of which set its rows are."""

import numpy as np
import pytest
from tests.data.picture_files import encoded, made, write_parquet, write_pictures

from fewstep.data.table import Table

IMAGES, LABELS = made(12, 4, (3, 8, 8))
SETS = ["train", "test", "train", "val"] * 3
TRAINING = [i for i, name in enumerate(SETS) if name == "train"]


def read(path, **options):
    return Table(path=str(path), **options).read()


def metadata(folder, sets, column="split"):
    write_pictures(folder, **{f"{i:02}": image for i, image in enumerate(IMAGES)})
    rows = [f"{i:02}.png,{label},{name}" for i, (label, name) in enumerate(zip(LABELS, sets))]
    (folder / "metadata.csv").write_text(f"file_name,label,{column}\n" + "\n".join(rows))
    return folder


@pytest.mark.parametrize("large", [False, True])
def test_rows_of_the_training_set(tmp_path, large):
    file = metadata(tmp_path, SETS) / "metadata.csv"
    dataset = Table(path=str(tmp_path)).read_files([file], memory=0 if large else 1 << 20)
    assert dataset.in_memory != large
    assert np.array_equal(dataset.images.numpy(), IMAGES[TRAINING])
    assert dataset.labels.tolist() == LABELS[TRAINING].tolist()
    assert dataset.fingerprint() == read(tmp_path).fingerprint() or large
    left = "beside train: 6 rows (test: 3, val: 3); .png: 6 (01.png, 03.png, 05.png, …)"
    assert dataset.notes["passed over"] == left
    assert "columns not used" not in dataset.notes
    everything = read(tmp_path, sets="none")
    assert (len(everything), everything.notes["columns not used"]) == (12, "split")
    assert everything.fingerprint() != dataset.fingerprint()


def test_pictures_in_the_table(tmp_path):
    file = write_parquet(tmp_path / "x.parquet", map(encoded, IMAGES), label=LABELS, Split=SETS)
    dataset = read(file)
    assert np.array_equal(dataset.images.numpy(), IMAGES[TRAINING])
    assert dataset.notes["passed over"] == "beside train: 6 rows (test: 3, val: 3)"
    contents = [encoded(image) for image in IMAGES]
    contents[4] = b"bad"
    write_parquet(file, contents, Split=SETS)
    with pytest.raises(ValueError, match=r"x\.parquet row 4: "):  # as its file counts
        read(file)


def test_rows_of_other_sets_need_no_label(tmp_path):
    (tmp_path / "x.csv").write_text("text,label,split\na,0,train\nb,,test\nc,1,train\n")
    assert read(tmp_path / "x.csv").labels.tolist() == [0, 1]


def test_another_column_of_sets(tmp_path):
    metadata(tmp_path, SETS, "part")
    assert len(read(tmp_path)) == 12
    assert len(read(tmp_path, sets="part")) == 6
    with pytest.raises(ValueError, match="no column split, only file_name, label, part"):
        read(tmp_path, sets="split")


@pytest.mark.parametrize("sets", [["test"] * 12, ["train"] * 12, ["a", "b"] * 6, [1, 2] * 6])
def test_one_set_alone_and_what_names_none_are_all_rows(tmp_path, sets):
    dataset = read(metadata(tmp_path, sets))
    assert len(dataset) == 12
    assert ("columns not used" in dataset.notes) == (sets[0] in ("a", 1))


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (["train", "later"], r"names the set train and in other rows 'later', which is none"),
        (["train", ""], r"names the set train and in other rows None, which is none"),
        (["test", "val"], r"names several sets, none of them for training, test, val"),
    ],
)
def test_doubt(tmp_path, sets, told):
    metadata(tmp_path, sets * 6)
    with pytest.raises(ValueError, match=rf"metadata\.csv: column split {told}: sets=none reads"):
        read(tmp_path)
    assert len(read(tmp_path, sets="none")) == 12


def test_the_column_may_be_asked_for_as_something_else(tmp_path):
    dataset = read(metadata(tmp_path, SETS), label="split")
    assert (len(dataset), dataset.notes["class names"]) == (12, "test, train, val")
