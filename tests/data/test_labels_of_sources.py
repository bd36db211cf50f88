"""The same rules for the labels of every source: none at all, ids, and sets that nobody reads."""

import pickle

import numpy as np
import pytest
from tests.data.idx_files import write_idx, write_pair
from tests.data.picture_files import cifar_bytes, encoded, made, write_parquet, write_pictures

from fewstep.cli.configure import source_of
from fewstep.data.labels import UNLABELLED

IMAGES, _ = made(12)
NONE = np.full(12, -1)


def idx(folder, labels):
    write_pair(folder, 12)
    write_idx(folder / "train-labels-idx1-ubyte", labels % 256)


def binary(folder, labels):
    (folder / "data_batch_1.bin").write_bytes(cifar_bytes(IMAGES, labels % 256))


def pickled(folder, labels):
    content = {b"data": IMAGES.reshape(12, -1), b"labels": labels.tolist()}
    (folder / "data_batch_1").write_bytes(pickle.dumps(content, 2))


def npz(folder, labels):
    np.savez(folder / "x.npz", arr_0=IMAGES.transpose(0, 2, 3, 1), arr_1=labels)


def table(folder, labels):
    write_parquet(folder / "x.parquet", map(encoded, IMAGES), label=labels)


SOURCES = [idx, binary, pickled, npz, table]


def read(folder, write, labels):
    folder.mkdir(exist_ok=True)
    write(folder, labels)
    return source_of(str(folder / "x.npz" if write is npz else folder)).read()


@pytest.mark.parametrize("write", SOURCES)
def test_unlabelled(tmp_path, write):
    dataset = read(tmp_path, write, NONE)
    assert (len(dataset), dataset.labels, dataset.classes) == (12, None, 0)
    assert any(note.endswith(UNLABELLED) for note in dataset.notes.values())


@pytest.mark.parametrize("write", SOURCES)
def test_some_labels_missing(tmp_path, write):
    with pytest.raises(ValueError, match=r"11 labels out of range 0 … "):
        read(tmp_path, write, np.where(np.arange(12) == 3, 0, -1))


@pytest.mark.parametrize("largest", [2000006, 10**9, 10**15])
@pytest.mark.parametrize("write", [npz, table])
def test_ids(tmp_path, write, largest):
    labels = np.array([0, 1000003, largest] * 4)
    with pytest.raises(ValueError, match=f" goes up to {largest} with 3 distinct labels"):
        read(tmp_path, write, labels)


@pytest.mark.parametrize(
    "other", ["data_batch_1.bin.part", "more/data_batch_2.zip", "train.bin.gz"]
)
def test_test_batches_do_not_take_the_place_of_others(tmp_path, other):
    labels = np.arange(12) % 10
    (tmp_path / "test_batch.bin").write_bytes(cifar_bytes(IMAGES, labels))
    assert len(source_of(str(tmp_path), ["kind=cifar"]).read()) == 12
    (tmp_path / other).parent.mkdir(exist_ok=True)
    (tmp_path / other).write_bytes(b"")
    with pytest.raises(ValueError, match=f"{other} cannot be read"):
        source_of(str(tmp_path), ["kind=cifar"]).read()
    assert len(source_of(str(tmp_path / "test_batch.bin")).read()) == 12


def test_the_metadata_of_a_test_set_do_not_take_the_place_of_the_training_set(tmp_path):
    write_pictures(tmp_path, train__1=IMAGES[0], test__1=IMAGES[1])
    (tmp_path / "test" / "metadata.csv").write_text("file_name,label\n1.png,0\n")
    with pytest.raises(ValueError, match=r"train/1\.png cannot be read as training data"):
        source_of(str(tmp_path), ["kind=table"]).read()
