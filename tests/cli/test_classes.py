"""Labels that nobody counted: what is said, sampled and written where classes have no images."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.cli.conftest import LOOP, NETWORK
from tests.data.idx_files import write_idx, write_pair
from tests.data.picture_files import encoded, made, write_parquet, write_pictures

TRAIN = ("train", "mnist_teacher", *NETWORK, *LOOP, "name=gap")
IMAGES, _ = made(30, shape=(1, 8, 8))
ONE_BASED = np.arange(30) % 3 + 1


def folder():
    write_pictures(Path("data"), **{f"{n}__{i}": IMAGES[i] for i, n in enumerate(ONE_BASED)})
    return ("data=folder",)


def table():
    write_parquet(Path("data/train.parquet"), map(encoded, IMAGES), label=ONE_BASED)
    return ("data=table",)


def words():
    names = [str(n) for n in ONE_BASED]
    write_parquet(Path("data/train.parquet"), map(encoded, IMAGES), label=names)
    return ("data=table",)


def idx():
    write_pair(Path("data"), 30)
    write_idx(Path("data/train-labels-idx1-ubyte"), ONE_BASED)
    return ("data=idx", "data.classes=4")


def train(fewstep, *options):
    ended = fewstep(*TRAIN, *options, "data.path=data")
    assert ended.code == 0, ended.err
    return ended.out


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("source", [folder, table, words, idx])
def test_classes_without_images_are_named_and_not_sampled(fewstep, source):
    out = train(fewstep, "data.split=all", *source())
    line = "warning: no images of 1 of 4 classes: 0; they are not trained"
    assert line in out.splitlines()
    assert fewstep("sample", "runs/gap", "--num", "8", "--steps", "1", "--out", "g.npz").code == 0
    assert np.load("g.npz")["arr_1"].tolist() == [1, 2, 3, 1, 2, 3, 1, 2]
    described = json.loads(Path("runs/gap/student/model.json").read_text())
    assert described["card"]["data"]["classes_without_images"] == [0]
    sample = ("sample", "runs/gap", "--labels", "0,1", "--steps", "1", "--out", "h.npz")
    ended = fewstep(*sample)
    assert "trained on no image of class 0" in ended.err
    assert ended.code == 0, ended.err


def test_classes_that_options_leave_without_images(fewstep):
    """It is the images that are trained on that count, not those of the source."""
    write_pair(Path("data"), 30)
    out = train(fewstep, "data.split=all", "data.limit=4")
    assert "warning: no images of 6 of 10 classes: 4, 5, 6, 7, 8, 9; they are not trained" in out
    fewstep("sample", "runs/gap", "--num", "5", "--steps", "1", "--out", "g.npz")
    assert np.load("g.npz")["arr_1"].tolist() == [0, 1, 2, 3, 0]
    out = fewstep("data", "check", "data", "split=all", "limit=4").out
    assert "images in each: 3 3 3 3 3 3 3 3 3 3\n" in out
    assert "classes without images in what is kept: 4, 5, 6, 7, 8, 9\n" in out


def test_whole_data_say_nothing(fewstep):
    write_pair(Path("data"), 30)
    assert "without images" not in train(fewstep, "data.split=all")
    assert "without images" not in fewstep("data", "check", "data", "split=all").out
    assert json.loads(Path("runs/gap/student/model.json").read_text())["examples"] == {}
    fewstep("sample", "runs/gap", "--num", "12", "--steps", "1", "--out", "g.npz")
    assert np.load("g.npz")["arr_1"].tolist() == [*range(10), 0, 1]


def test_what_was_passed_over_stands_in_the_first_lines(fewstep):
    options = folder()
    Path("data/1/9.gif").write_bytes(b"GIF")
    Path("data/.hidden").write_bytes(b"")
    told = "passed over: hidden: 1 (.hidden); .gif: 1 (1/9.gif)"
    lines = train(fewstep, "data.split=all", *options).splitlines()
    assert lines[0] == "data: folder data, 30 rows of image (1×8×8), label (4 classes)"
    assert lines[4] == f"data: {told}"
    assert told in fewstep("data", "check", "data").out.splitlines()


def test_unlabelled_data_say_so(fewstep):
    write_parquet(Path("data/train.parquet"), map(encoded, IMAGES), label=[-1] * 30)
    out = train(fewstep, "data.split=all", "data=table")
    assert "data: labels: label is -1 everywhere, which means none: read without" in out
    assert "labels: label is -1 everywhere" in fewstep("data", "check", "data").out


def test_every_way_to_no_images(refused):
    write_pictures(Path("data"), **{"1": IMAGES[0]})
    data = ("data=folder", "data.path=data")
    says = ["no images left of 1", "data.split=all"]
    refused(2, *TRAIN, *data, says=says)
    refused(2, *TRAIN, *data, "data.split=all", "data.fraction=0", says="data.fraction) keeps some")
    refused(2, "data", "check", "data", says=": split=all (in a run data.split=all) takes all")
    write_pair(Path("none"), 0)
    refused(2, *TRAIN, "data.path=none", says=["no images left of 0", "the source is empty"])


def test_ids_are_no_classes(refused):
    for largest in (2000006, 10**9, 10**15):
        labels = np.array([0, 1000003, largest] * 10)
        write_parquet(Path("data/train.parquet"), map(encoded, IMAGES), label=labels)
        says = ["data/train.parquet", "column label", str(largest), "3 distinct", "label=none"]
        refused(2, "data", "check", "data", says=says)
