"""Columns of pictures, captions and vectors: another type, and what is missing, is named."""

import re

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from tests.data.picture_files import encoded, made

from fewstep.data.table import Table

COUNT = 3
CONTENTS = [encoded(image) for image in made(COUNT, shape=(1, 4, 4))[0]]
BYTES, PATH = ("bytes", pyarrow.binary()), ("path", pyarrow.string())


def struct(value, *fields):
    return pyarrow.array([value] * COUNT, pyarrow.struct(list(fields)))


PACKED = [{"bytes": content, "path": None} for content in CONTENTS]
PICTURES = pyarrow.array(PACKED, pyarrow.struct([BYTES, PATH]))


@pytest.fixture(params=["parquet", "arrow"])
def read(request, tmp_path):
    """Writes a table, and reads it."""

    def of(columns):
        names, arrays = zip(*columns)
        table = pyarrow.Table.from_arrays(list(arrays), list(names))
        file = tmp_path / f"x.{request.param}"
        if request.param == "parquet":
            parquet.write_table(table, file)
        else:
            with (
                pyarrow.OSFile(str(file), "wb") as out,
                pyarrow.ipc.new_stream(out, table.schema) as writer,
            ):
                writer.write_table(table)
        return Table(path=str(tmp_path), split="all").read()

    return of


@pytest.mark.parametrize(
    "column",
    [
        PICTURES,
        pyarrow.array([{"bytes": c} for c in CONTENTS], pyarrow.struct([BYTES])),
        pyarrow.array(CONTENTS),
        pyarrow.array(CONTENTS, pyarrow.large_binary()),
    ],
)
def test_pictures(read, column):
    assert read([("Image", column)]).shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (struct({"path": "a.png"}, PATH), "not embedded"),
        (struct({"bytes": None, "path": "a.png"}, BYTES, PATH), "not embedded"),
        (struct({"bytes": None, "path": None}, BYTES, PATH), "not embedded"),
        (struct(None, BYTES, PATH), "not embedded"),
        (struct({"bytes": None, "path": "a"}, ("bytes", pyarrow.null()), PATH), "not embedded"),
        (pyarrow.nulls(COUNT), "not embedded"),
        (pyarrow.array(["a.png"] * COUNT), "not embedded"),
        (pyarrow.array(["a.png"] * COUNT).dictionary_encode(), "not embedded"),
        (struct({"x": 1}, ("x", pyarrow.int64())), "holds struct<x: int64>, no pictures"),
        (struct({"bytes": "x"}, ("bytes", pyarrow.string())), "no pictures"),
        (pyarrow.array([1] * COUNT), "holds int64, no pictures"),
        (pyarrow.array([[1, 2]] * COUNT), "holds list<item: int64>, no pictures"),
        (pyarrow.array([[b"x"]] * COUNT), "holds list<item: binary>, no pictures"),
        (pyarrow.array([True] * COUNT), "holds bool, no pictures"),
        (pyarrow.array([b"1234"] * COUNT, pyarrow.binary(4)), "no pictures"),
    ],
)
def test_what_is_no_picture(read, column, message):
    with pytest.raises(ValueError, match=rf"x\.(parquet|arrow).*{message}"):
        read([("image", column)])


@pytest.mark.parametrize("name", ["image", "label"])
def test_a_column_twice(read, name):
    columns = [("image", PICTURES), ("label", pyarrow.array([1] * COUNT))]
    twice = [pair for pair in columns if pair[0] == name]
    with pytest.raises(ValueError, match=rf"x\.(parquet|arrow).*{name}"):
        read(columns + twice)


@pytest.mark.parametrize("values", [[[0.5]], [[["a"]]], [{"a": 1}], [b"a"], [0.5]])
def test_what_is_no_text(read, values):
    with pytest.raises(ValueError, match=r"x\..*column text holds .*not texts; caption=none"):
        read([("image", PICTURES), ("text", pyarrow.array(values * COUNT))])


def test_captions_that_are_missing(read):
    dataset = read([("image", PICTURES), ("caption", pyarrow.array(["a", None, "c"]))])
    assert dataset.rows(torch.arange(3))["caption"] == ["a", "", "c"]
    told = r"missing in 1 of 3 rows, read as '': .*x\.(parquet|arrow) row 1"
    assert re.fullmatch(told, dataset.notes["captions"])
    dataset = read([("image", PICTURES), ("caption", pyarrow.nulls(COUNT))])
    assert list(dataset.columns) == ["image"]
    assert dataset.notes["captions"] == "caption is missing everywhere: read without"
    with pytest.raises(ValueError, match=r"nothing to train on: .*missing everywhere"):
        read([("caption", pyarrow.nulls(COUNT))])


@pytest.mark.parametrize(
    "kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()], ids=str
)
def test_several_captions_of_a_row(read, kind):
    lists = pyarrow.array([["a", "", "b"], [None], None], pyarrow.list_(kind))
    dataset = read([("image", PICTURES), ("captions", lists)])
    rows = dataset.rows(torch.arange(3))
    assert rows["captions"] == [("a", "b"), ("",), ("",)]
    assert rows["caption"] == ["a", "", ""]
    assert "missing in 2 of 3 rows" in dataset.notes["captions"]
    single = read([("image", PICTURES), ("text", pyarrow.array([["a"]] * COUNT))])
    assert list(single.columns) == ["image", "caption"]
    assert single.rows(torch.arange(3))["caption"] == ["a"] * COUNT


@pytest.mark.parametrize("name", ["latent", "embedding"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", "a", "a"], "holds string, no vectors"),
        ([["a"], ["a"], ["a"]], "no vectors"),
        ([None, None, None], "holds null, no vectors"),
        ([1.0, 2.0, 3.0], "holds double, no vectors"),
        ([{"a": 1}] * 3, "no vectors"),
        ([[1.0], [2.0], [3.0, 4.0]], r"row 2: .* has the shape \(2,\), in row 0 \(1,\)"),
        ([[1.0], [2.0], None], "row 2: .* holds no vector"),
        ([None, [2.0], [1.0]], "row 0: .* holds no vector"),
        ([[1.0], [None], [1.0]], "row 1: .* holds no vector"),
        ([[1.0], [2.0], [float("nan")]], "row 2: .* not finite"),
        ([[[1.0], [1.0, 2.0]]] * 3, "row 0: .* holds no vector"),
        ([[]] * 3, "no vectors|is empty"),
    ],
)
def test_what_is_no_vector(read, name, values, message):
    columns = [(name, pyarrow.array(values))] + [("image", PICTURES)] * (name == "embedding")
    with pytest.raises(ValueError, match=rf"x\.(parquet|arrow).*({message})"):
        read(columns).verify()


def test_vectors_of_any_number(read):
    for kind in (pyarrow.float16(), pyarrow.float32(), pyarrow.int64()):
        numbers = np.float16(1.5) if kind == pyarrow.float16() else 1
        column = pyarrow.array([[numbers, numbers]] * COUNT, pyarrow.list_(kind))
        rows = read([("latent", column)]).rows(torch.arange(COUNT))
        assert rows["latent"].tolist() == [[float(numbers)] * 2] * COUNT
