"""Every format of tables gives the same rows: pictures, classes, captions, latents."""

import io
import json
import tarfile

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from tests.data.picture_files import encoded, made, write_parquet

from fewstep.choice import kind_of
from fewstep.cli.configure import source_of
from fewstep.data.table import Table

COUNT = 12
IMAGES, LABELS = made(COUNT, 4, (3, 8, 8))
CAPTIONS = [f"picture, number {i}" for i in range(COUNT)]


def embedded(folder):
    """Parquet with pictures inside."""
    contents = [encoded(image) for image in IMAGES]
    write_parquet(folder / "rows.parquet", contents, label=LABELS, caption=CAPTIONS)


def arrow(folder):
    pictures = [{"bytes": encoded(image), "path": None} for image in IMAGES]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table(
        {"image": pyarrow.array(pictures, kind), "label": LABELS, "caption": CAPTIONS}
    )
    file = str(folder / "rows.arrow")
    with pyarrow.OSFile(file, "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def files(folder):
    """The pictures as files, and what stands beside each."""
    (folder / "pictures").mkdir()
    rows = []
    for i, image in enumerate(IMAGES):
        (folder / "pictures" / f"{i:02}.png").write_bytes(encoded(image))
        rows.append((f"pictures/{i:02}.png", int(LABELS[i]), CAPTIONS[i]))
    return rows


def csv(folder, name="rows.csv"):
    lines = [f'{file},{label},"{caption}"' for file, label, caption in files(folder)]
    (folder / name).write_text("\n".join(["file_name,label,caption", *lines]) + "\n")


def json_lines(folder, name="rows.jsonl"):
    keys = ("file_name", "label", "text")
    lines = [json.dumps(dict(zip(keys, row))) for row in files(folder)]
    (folder / name).write_text("\n".join(lines) + "\n")


def webdataset(folder):
    with tarfile.open(folder / "shard-000.tar", "w") as archive:
        for i, image in enumerate(IMAGES):
            for suffix, content in (
                ("png", encoded(image)),
                ("cls", str(LABELS[i]).encode()),
                ("txt", CAPTIONS[i].encode()),
            ):
                info = tarfile.TarInfo(f"{i:04}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


FORMATS = {
    "parquet": embedded,
    "arrow": arrow,
    "csv": csv,
    "json lines": json_lines,
    "metadata.csv": lambda folder: csv(folder, "metadata.csv"),
    "metadata.jsonl": lambda folder: json_lines(folder, "metadata.jsonl"),
    "webdataset": webdataset,
}


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_rows(tmp_path, form):
    FORMATS[form](tmp_path)
    source = Table(path=str(tmp_path), split="all")
    dataset = source.dataset()
    assert np.array_equal(dataset.images.numpy(), IMAGES)
    assert dataset.labels.tolist() == LABELS.tolist()
    assert dataset.classes == 4
    rows = dataset.rows(torch.tensor([3, 0]))
    assert rows["caption"] == [CAPTIONS[3], CAPTIONS[0]]
    assert set(rows) == {"image", "label", "caption"}
    assert Table(path=str(tmp_path), split="all", label="none").dataset().classes == 0
    without = Table(path=str(tmp_path), split="all", caption="none").dataset()
    assert set(without.columns) == {"image", "label"}


@pytest.mark.parametrize("form", ["metadata.csv", "metadata.jsonl", "webdataset", "parquet"])
def test_the_kind_is_found(tmp_path, form):
    FORMATS[form](tmp_path)
    assert kind_of(type(source_of(str(tmp_path)))) == "table"


def test_a_picture_outside_the_folder_is_refused(tmp_path):
    (tmp_path / "secret.png").write_bytes(encoded(IMAGES[0]))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "rows.csv").write_text("file_name,label\n../secret.png,0\n")
    with pytest.raises(ValueError, match=r"rows\.csv row 0: \.\./secret\.png lies outside"):
        Table(path=str(tmp_path / "set"), split="all").dataset()


def test_a_picture_that_is_not_there(tmp_path):
    (tmp_path / "rows.csv").write_text("file_name,label\nnowhere.png,0\n")
    with pytest.raises((ValueError, OSError), match=r"nowhere\.png"):
        Table(path=str(tmp_path), split="all").dataset()


def test_prompts_only(tmp_path):
    (tmp_path / "prompts.csv").write_text("prompt\na red circle\na blue square\n")
    dataset = Table(path=str(tmp_path), split="all").dataset()
    assert (len(dataset), dataset.shape, dataset.labels) == (2, (), None)
    assert dataset.rows(torch.tensor([1]))["caption"] == ["a blue square"]


def test_latents_and_embeddings(tmp_path):
    latents = np.random.default_rng(0).normal(size=(5, 4, 2, 2)).astype(np.float32)
    table = pyarrow.table({"latent": latents.tolist(), "embedding": latents[:, 0].tolist()})
    parquet.write_table(table, tmp_path / "rows.parquet")
    dataset = Table(path=str(tmp_path), split="all").dataset()
    assert dataset.shape == (4, 2, 2)
    rows = dataset.rows(torch.tensor([4, 1]))
    assert torch.equal(rows["latent"], torch.from_numpy(latents[[4, 1]]))
    assert torch.equal(rows["embedding"], torch.from_numpy(latents[[4, 1], 0]))


def test_metadata_of_the_training_set(tmp_path):
    """Also where the test set goes first by its name."""
    for name in ("a_test", "train"):
        (tmp_path / name).mkdir()
        csv(tmp_path / name, "metadata.csv")
    (tmp_path / "train" / "more.png").write_bytes(encoded(IMAGES[0]))
    assert kind_of(type(source_of(str(tmp_path)))) == "table"
    dataset = Table(path=str(tmp_path)).read()
    assert dataset.notes["files"] == str(tmp_path / "train" / "metadata.csv")
    assert ".csv: 1 (a_test/metadata.csv); .png: 13 (" in dataset.notes["passed over"]
    (tmp_path / "train").rename(tmp_path / "one")
    (tmp_path / "a_test").rename(tmp_path / "two")
    with pytest.raises(ValueError, match=r"several folders hold metadata, .*one, .*two"):
        Table(path=str(tmp_path)).read()


def test_metadata_of_deep_pictures_and_damaged_metadata(tmp_path):
    deep = tmp_path / "pictures" / "of" / "all"
    deep.mkdir(parents=True)
    (deep / "1.png").write_bytes(encoded(IMAGES[0]))
    file = tmp_path / "metadata.csv"
    file.write_text("file_name,label\npictures/of/all/1.png,3\n")
    source = source_of(str(tmp_path), ["split=all"])
    assert source.dataset().labels.tolist() == [3]
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"metadata\.csv is damaged"):
        source_of(str(tmp_path)).read()


def shards(folder, *names, write=embedded):
    """A table of that name each, of which the first has other pictures' order."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder)
        next(folder.glob("rows.*")).rename(folder / name)


@pytest.mark.parametrize(
    "names",
    [
        ("train-0.parquet", "dev-0.parquet", "eval-0.parquet", "testing-0.parquet"),
        ("Train-0.parquet", "Test-0.parquet"),
        ("train2017.parquet", "val2017.parquet"),
        ("data/train/0.parquet", "data/validation/0.parquet", "data/extra/0.parquet"),
        ("training_set.parquet", "all.parquet"),
    ],
)
def test_shards_of_other_sets_are_not_trained_on(tmp_path, names):
    shards(tmp_path, *names)
    dataset = Table(path=str(tmp_path)).read()
    assert (len(dataset), dataset.notes["files"]) == (COUNT, str(tmp_path / names[0]))
    told = f".parquet: {len(names) - 1} ({', '.join(sorted(names[1:]))})"
    assert dataset.notes["passed over"] == told


@pytest.mark.parametrize("other", ["train.csv", "train.json", "train.parquet.part", "train.tar.gz"])
def test_a_training_set_that_nobody_reads_is_not_replaced_by_the_test_set(tmp_path, other):
    shards(tmp_path, "test-0.parquet")
    (tmp_path / other).write_bytes(b"")
    with pytest.raises(ValueError, match=other):
        Table(path=str(tmp_path)).read()
    assert len(Table(path=str(tmp_path / "test-0.parquet")).read()) == COUNT


def test_several_sets_without_a_training_set(tmp_path):
    shards(tmp_path, "test-0.parquet", "val-0.parquet")
    with pytest.raises(ValueError, match="several sets, none of them for training"):
        Table(path=str(tmp_path)).read()


def test_what_datasets_computed_is_no_data(tmp_path):
    shards(tmp_path, "data-0.arrow", "cache-1f.arrow", write=arrow)
    dataset = Table(path=str(tmp_path)).read()
    assert (len(dataset), dataset.notes["passed over"]) == (COUNT, ".arrow: 1 (cache-1f.arrow)")


def test_latents_alone_can_be_checked(tmp_path):
    parquet.write_table(
        pyarrow.table({"latent": [[1.0], [2.0], [3.0, 4.0]]}), tmp_path / "x.parquet"
    )
    dataset = Table(path=str(tmp_path)).read()
    with pytest.raises(ValueError, match=r"x\.parquet row 2: latent has the shape"):
        dataset.verify()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "file_name,label\n", r"no rows: .*a\.csv"),
        ("a.csv", "file_name,label\na\0b,1\n", r"a\.csv is no text in UTF-8: byte 17 is 0"),
        ("a.jsonl", '{"image": "a\\u0000b"}\n', r"a\.jsonl row 0: 'a.*b' is no name of a file"),
        ("a.csv", "text,label\na,1\nb,\n", r"a\.csv row 1 has no label"),
        ("a.csv", "text,label\na,1e15\nb,0\n", r"a\.csv: column label goes up to 10{15} with 2"),
        (
            "a.csv",
            "text;label\na;1\n",
            r"a\.csv has no column img .*, nor caption, .*only text;label",
        ),
        ("a.jsonl", '{"text": "a"}\n{"text": "b", "label": 2}\n', r"a\.jsonl row 0 has no label"),
        ("a.jsonl", '{"text": "a", "label": [1]}\n', r"a\.jsonl: column label holds list"),
    ],
)
def test_texts_that_are_no_tables(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        Table(path=str(tmp_path)).read()


def test_a_column_of_mappings_is_named(tmp_path):
    kind = pyarrow.map_(pyarrow.string(), pyarrow.binary())
    table = pyarrow.table({"image": pyarrow.array([[("a", b"x")]], kind)})
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet: column image holds map<.*neither pictures"):
        Table(path=str(tmp_path)).read()
