"""What a path holds is found out by what lies there, and the same images are the same in every
format.
"""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.data import picture_files as files
from tests.data.idx_files import write_idx, write_pair
from tests.data.picture_files import encoded, made, write_parquet, write_pictures

from fewstep.choice import kind_of
from fewstep.cli.configure import source_of
from fewstep.data.source import Source

IMAGES, LABELS = made(20)


def write(folder, kind):
    """The same images in each format."""
    folder.mkdir()
    if kind == "idx":
        write_idx(folder / "train-images-idx4-ubyte", IMAGES.transpose(0, 2, 3, 1))
        write_idx(folder / "train-labels-idx1-ubyte", LABELS)
    elif kind == "parquet":
        write_parquet(folder / "train.parquet", map(encoded, IMAGES), label=LABELS)
    elif kind == "binary":
        (folder / "data_batch_1.bin").write_bytes(files.cifar_bytes(IMAGES, LABELS))
    elif kind == "python":
        (folder / "data_batch_1").write_bytes(files.python2_pickle(IMAGES, labels=LABELS))
    elif kind == "archive":
        (folder / "cifar-10-python.tar.gz").write_bytes(
            files.tar_bytes({"data_batch_1": files.python2_pickle(IMAGES, labels=LABELS)})
        )
    else:
        between = "__" if kind == "class folders" else "_"
        names = {
            f"{label}{between}{i:02d}": image
            for i, (image, label) in enumerate(zip(IMAGES, LABELS))
        }
        write_pictures(folder, **names)
    return folder


KINDS = {"idx": "idx", "parquet": "table", "class folders": "folder", "prefixes": "folder"}
KINDS |= dict.fromkeys(["binary", "python", "archive"], "cifar")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of_file", [False, True])
def test_the_kind_is_found_and_the_images_are_the_same(tmp_path, kind, of_file):
    path = write(tmp_path / "data", kind)
    if of_file and KINDS[kind] != "folder":
        path = next(path.iterdir() if kind != "idx" else path.glob("*images*"))
    source = source_of(str(path))
    assert kind_of(type(source)) == KINDS[kind]
    dataset = source.read()
    images, labels = IMAGES, LABELS
    if KINDS[kind] == "folder":  # by class
        images, labels = IMAGES[np.argsort(LABELS, kind="stable")], np.sort(LABELS)
    assert np.array_equal(dataset.images.numpy(), images)
    assert dataset.labels.tolist() == labels.tolist()
    assert dataset.classes == 10


def test_the_fingerprint_is_of_the_images_not_of_their_format(tmp_path):
    kinds = [kind for kind in KINDS if KINDS[kind] != "folder"]
    assert (
        len(
            {source_of(str(write(tmp_path / kind, kind))).dataset().fingerprint() for kind in kinds}
        )
        == 1
    )


def test_of_several_kinds_the_one_with_the_most_bytes(tmp_path):
    write(tmp_path / "data", "binary")
    write_pictures(tmp_path / "data", sample=IMAGES[0])
    write_pair(tmp_path / "data", 3)
    assert Source.kind_at(tmp_path / "data") == "cifar"
    assert kind_of(type(source_of(str(tmp_path / "data"), ["kind=folder"]))) == "folder"
    assert len(source_of(str(tmp_path / "data"), ["kind=idx"]).read()) == 3
    write_pictures(
        tmp_path / "data", **{f"a{i}": made(1, shape=(3, 200, 200))[0][0] for i in range(2)}
    )
    assert Source.kind_at(tmp_path / "data") == "folder"


def test_options_go_to_the_kind_that_was_found(tmp_path):
    source = source_of(
        str(write(tmp_path / "data", "class folders")),
        ["size=4", "limit=3", "split=all", "flip=true"],
    )
    dataset = source.dataset()
    assert (dataset.shape, len(dataset), dataset.flip) == ((3, 4, 4), 3, True)


def test_names_of_sources_go_before_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "digits", "binary")
    write(tmp_path / "cifar", "binary")
    assert source_of("digits").dataset().shape == (1, 8, 8)
    assert source_of("cifar").read().shape == (3, 32, 32)


def test_nothing_that_any_kind_reads(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "train").mkdir()
    for path in (tmp_path, tmp_path / "notes.md"):
        with pytest.raises(
            ValueError,
            match=r"no data in .*notes\.md.* for cached, cifar, coco, .*, npz, prompts, table$",
        ):
            source_of(str(path))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        source_of(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("kind", KINDS)
def test_only_training_flips(tmp_path, kind):
    source = source_of(str(write(tmp_path / "data", kind)), ["flip=true"])
    assert {split: source.dataset(split).flip for split in ("train", "all", "test")} == {
        "train": True,
        "all": True,
        "test": False,
    }
    assert not source_of(str(tmp_path / "data")).dataset().flip
    same = [
        source_of(str(tmp_path / "data"), [f"flip={flip}"]).dataset() for flip in ("true", "false")
    ]
    assert torch.equal(same[0].floats(), same[1].floats())
    assert same[0].fingerprint() == same[1].fingerprint()


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "test.jsonl"),
        ("train_v2.csv", "dev.csv"),
        ("labels.csv", ""),
    ],
)
def test_a_table_of_the_pictures_below_is_the_data(tmp_path, names):
    write_pictures(tmp_path, **{f"pictures__{i:02}": image for i, image in enumerate(IMAGES)})
    training = range(20) if not names[1] else range(14)
    for name, places in zip(names, (training, range(14, 20))):
        if not name:
            continue
        rows = [{"file_name": f"pictures/{i:02}.png", "label": int(LABELS[i])} for i in places]
        lines = [f"{row['file_name']},{row['label']}" for row in rows]
        text = ["file_name,label", *lines] if name.endswith("csv") else map(json.dumps, rows)
        (tmp_path / name).write_text("\n".join(text) + "\n")
    source = source_of(str(tmp_path))
    assert kind_of(type(source)) == "table"
    dataset = source.read()
    assert np.array_equal(dataset.images.numpy(), IMAGES[list(training)])
    assert dataset.labels.tolist() == LABELS[list(training)].tolist()


def test_a_parquet_table_that_names_pictures_is_not_passed_over(tmp_path):
    """Its labels would be lost without a word."""
    write_pictures(tmp_path, pictures__0=IMAGES[0])
    rows = [{"file_name": "pictures/0.png", "label": 3}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"train\.parquet row 0: the picture is not embedded"):
        source_of(str(tmp_path)).read()
    assert len(source_of(str(tmp_path), ["kind=folder"]).read()) == 1


@pytest.mark.parametrize("row", ["0.png", "there/0.png", "a0"])
def test_a_table_of_pictures_that_lie_elsewhere_is_a_doubt(tmp_path, row):
    write_pictures(tmp_path, pictures__0=IMAGES[0])
    (tmp_path / "labels.csv").write_text(f"label,file_name\ncat,{row}\n")
    with pytest.raises(
        ValueError, match=rf"labels\.csv names pictures \({row}\).*kind=table.*kind=folder"
    ):
        source_of(str(tmp_path))
    assert len(source_of(str(tmp_path), ["kind=folder"]).read()) == 1
    with pytest.raises(FileNotFoundError):
        source_of(str(tmp_path), ["kind=table"]).read()


def test_a_table_that_names_no_pictures_is_passed_over(tmp_path):
    write_pictures(tmp_path, pictures__0=IMAGES[0])
    (tmp_path / "log.csv").write_text("step,loss\n1,0.5\n")
    (tmp_path / "log.jsonl").write_text('{"step": 1, "path": null}\n[1]\n')
    source = source_of(str(tmp_path))
    assert kind_of(type(source)) == "folder"
    assert ".csv: 1 (log.csv); .jsonl: 1 (log.jsonl)" in source.read().notes["passed over"]


def test_pictures_of_formats_that_are_not_read(tmp_path):
    for name in ("a.bmp", "b.BMP", "c.tif"):
        (tmp_path / name).write_bytes(b"x")
    told = r"found pictures that are not read: 2 \.bmp, 1 \.tif; PNG, JPEG and WebP are"
    for options in ([], ["kind=folder"]):
        with pytest.raises(ValueError, match=told):
            source_of(str(tmp_path), options).read()
