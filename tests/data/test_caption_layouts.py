"""One set of captioned pictures in every layout gives the same rows; what is wrong is named."""

import csv
import json

import pyarrow
import pytest
import torch
from pyarrow import parquet
from tests.data.picture_files import encoded, made, write_pictures

from fewstep.choice import kind_of
from fewstep.cli.configure import source_of
from fewstep.data import lazy
from fewstep.data.captions import told
from fewstep.data.coco import Coco
from fewstep.data.folder import Folder
from fewstep.data.table import Table

IMAGES = made(4, shape=(3, 4, 4))[0]
NAMES = ["a.png", "b.png", "c.png", "d.png"]
ONE = [("a red bird",), ("two, with a comma",), (), ("größer ‘x’",)]
SEVERAL = [("a red bird", "bird"), ("two, with a comma",), (), ("größer", "ein", "x y z")]


def pictures(folder):
    write_pictures(folder, **{name.removesuffix(".png"): x for name, x in zip(NAMES, IMAGES)})


def texts(folder, captions, suffix=".txt"):
    pictures(folder)
    for name, lines in zip(NAMES, captions):
        if lines:
            (folder / name).with_suffix(suffix).write_text("\n".join(lines) + "\n", "utf-8")


def metadata_csv(folder, captions):
    pictures(folder)
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "text", "artist"])
        rows.writerows([name, "".join(some[:1]), "me"] for name, some in zip(NAMES, captions))


def metadata_jsonl(folder, captions):
    pictures(folder)
    lines = []
    for name, some in zip(NAMES, captions):
        caption = list(some) if captions is SEVERAL else "".join(some)
        lines.append(json.dumps({"file_name": name, "caption": caption, "artist": "me"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), "utf-8")


def table(folder, captions):
    folder.mkdir()
    found = list(map(list, captions)) if captions is SEVERAL else ["".join(c) for c in captions]
    columns = {"image": [encoded(one) for one in IMAGES], "captions": found}
    parquet.write_table(pyarrow.table(columns), folder / "train.parquet")


def coco(folder, captions, split="train2017"):
    pictures(folder / split)
    (folder / "annotations").mkdir(exist_ok=True)
    images = [{"id": 10 + i, "file_name": name} for i, name in enumerate(NAMES)]
    notes = []
    for i, some in enumerate(captions):
        notes.extend({"image_id": 10 + i, "caption": caption, "id": 7} for caption in some)
    whole = {"info": {}, "images": images[::-1], "annotations": notes}
    (folder / "annotations" / f"captions_{split}.json").write_text(json.dumps(whole))


LAYOUTS = {metadata_csv: "table", metadata_jsonl: "table", texts: "folder", table: "table"}
LAYOUTS[coco] = "coco"


def rows_of(dataset):
    rows = dataset.rows(torch.arange(len(dataset)))
    return rows.pop("image").tolist(), rows


@pytest.fixture(params=[0, 64 << 20], ids=["stored", "held"])
def memory(request, monkeypatch):
    """Sets are read when needed, or kept."""
    monkeypatch.setattr(lazy, "MEMORY", request.param)
    monkeypatch.setattr(lazy.pictures, "__defaults__", (request.param,))
    monkeypatch.setattr(Table.read_files, "__defaults__", (None, request.param))
    return request.param


@pytest.mark.parametrize("captions", [ONE, SEVERAL], ids=["one", "several"])
def test_every_layout_gives_the_same_rows(tmp_path, memory, captions):
    layouts = [one for one in LAYOUTS if captions is ONE or one is not metadata_csv]
    found, prints = [], set()
    for write in layouts:
        write(tmp_path / write.__name__, captions)
        source = source_of(str(tmp_path / write.__name__), ["split=all"])
        assert kind_of(type(source)) == LAYOUTS[write]
        dataset = source.dataset()
        dataset.verify()
        assert dataset.in_memory == bool(memory)
        assert dataset.notes["captions"].startswith("missing in 1 of 4 ")
        found.append(rows_of(dataset))
        prints.add(dataset.fingerprint())
    assert found[0][0] == IMAGES.tolist()
    assert found[0][1]["caption"] == ["".join(some[:1]) for some in captions]
    assert found[0][1].get("captions") == (
        [some or ("",) for some in SEVERAL] if captions is SEVERAL else None
    )
    assert all(one == found[0] for one in found)
    if memory:
        assert len(prints) == 1


def test_columns_that_are_no_captions_are_kept_out(tmp_path):
    metadata_csv(tmp_path / "data", ONE)
    dataset = Table(path=str(tmp_path / "data")).read()
    assert set(dataset.columns) == {"image", "caption"}
    assert dataset.notes["columns not used"] == "artist"


def test_words_that_may_stay_unsaid(tmp_path, memory):
    """They are the words of a column; a comma before them goes, all else of a caption stays."""
    pictures(tmp_path)
    lines = ["file_name,text,tone"]
    lines += ['a.png,"a hand, dark red",dark red', 'b.png,"a, dark red, hand",dark red']
    lines += ["c.png,dark red,dark red", "d.png,a darker red,dark"]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    dataset = Table(path=str(tmp_path), split="all", unsaid="tone").read()
    rows = dataset.rows(torch.arange(4), ["caption", "captions"])
    assert rows["caption"] == ["a hand, dark red", "a, dark red, hand", "dark red", "a darker red"]
    assert rows["captions"] == [
        ("a hand, dark red", "a hand"),
        ("a, dark red, hand", "a, hand"),
        ("dark red",),
        ("a darker red",),
    ]
    assert "columns not used" not in dataset.notes
    plain = Table(path=str(tmp_path), split="all").read()
    assert "captions" not in plain.columns
    assert dataset.fingerprint() != plain.fingerprint()
    with pytest.raises(ValueError, match="no column tones, only file_name, text, tone"):
        Table(path=str(tmp_path), unsaid="tones").read()


def test_the_shape_is_foreseen_where_options_tell_it(tmp_path):
    metadata_csv(tmp_path / "data", ONE)
    told = {"label": "none", "size": 2, "channels": "grey"}
    source = Table(path=str(tmp_path / "data"), **told)
    assert source.foreseen().shape == source.read().shape == (1, 2, 2)
    assert source.foreseen().classes == 0
    assert Table(**told | {"channels": "rgb"}).foreseen().shape == (3, 2, 2)
    for name in told:
        assert (
            Table(**{key: value for key, value in told.items() if key != name}).foreseen() is None
        )


def test_classes_and_captions(tmp_path):
    write_pictures(tmp_path, cat__1=IMAGES[0], dog__1=IMAGES[1])
    (tmp_path / "dog" / "1.txt").write_text("a dog")
    (tmp_path / "dog" / "notes.txt").write_text("no caption")
    dataset = Folder(path=str(tmp_path)).read()
    rows = dataset.rows(torch.arange(2))
    assert (rows["label"].tolist(), rows["caption"]) == ([0, 1], ["", "a dog"])
    assert dataset.notes["captions"] == "missing in 1 of 2 pictures, read as '': cat/1.png"
    assert dataset.notes["passed over"] == ".txt: 1 (dog/notes.txt)"
    without = Folder(path=str(tmp_path), caption="none").read()
    assert set(without.columns) == {"image", "label"}
    assert without.notes["passed over"] == ".txt: 2 (dog/1.txt, dog/notes.txt)"


def test_the_fingerprint_knows_captions(tmp_path, memory):
    prints = set()
    for suffix, captions in ((".txt", ONE), (".caption", ONE), (".txt", SEVERAL)):
        folder = tmp_path / f"{suffix}{len(captions[0])}"
        texts(folder, captions, suffix)
        prints.add(Folder(path=str(folder)).read().fingerprint())
    assert len(prints) == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"\xff\xfea\0", "b.txt is no text in UTF-8: byte 0"), (b"ab\0c", "b.txt .* byte 2 is 0")],
)
def test_a_text_that_cannot_be_read(tmp_path, content, says):
    texts(tmp_path / "data", ONE)
    (tmp_path / "data" / "b.txt").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        Folder(path=str(tmp_path / "data")).read()


def test_texts_that_are_too_large_or_two(tmp_path):
    texts(tmp_path / "data", ONE)
    (tmp_path / "data" / "b.txt").write_bytes(b"a" * ((1 << 20) + 1))
    with pytest.raises(ValueError, match=r"b\.txt has more than 1,048,576 bytes"):
        Folder(path=str(tmp_path / "data")).read()
    (tmp_path / "data" / "b.txt").write_text("b")
    (tmp_path / "data" / "b.caption").write_text("b")
    with pytest.raises(ValueError, match=r"b\.caption and .*b\.txt are both captions of b\.png"):
        Folder(path=str(tmp_path / "data")).read()


@pytest.mark.parametrize("content", ["a\r\nb\rc\nd", "\ufeffa\nb\n\n  c \nd\n"])
def test_lines_of_every_system(tmp_path, content):
    write_pictures(tmp_path, x=IMAGES[0])
    (tmp_path / "x.TXT").write_bytes(content.encode())
    rows = Folder(path=str(tmp_path)).read().rows(torch.arange(1))
    assert rows["captions"] == [("a", "b", "c", "d")]


def test_what_is_told_of_captions(tmp_path):
    coco(tmp_path, SEVERAL)
    found = told(Coco(path=str(tmp_path)).read())
    assert found == {
        "captions in all": "6 in 4 rows, 2.2 words each, 11 different words",
        "longest caption": "4 words: two, with a comma",
        "first captions": "a red bird; bird; two, with a comma",
    }
