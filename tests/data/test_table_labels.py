"""A column of labels of any type: class numbers, none at all, or an error that names it."""

import datetime
import decimal

import numpy as np
import pyarrow
import pytest
from tests.data.picture_files import encoded, made, write_parquet

from fewstep.data.table import Table
from fewstep.data.table_labels import read_labels

NAN = float("nan")


def read(values, known=(), kind=None):
    column = pyarrow.chunked_array([pyarrow.array(values, kind)])
    return read_labels(column, known, "label", lambda row: f"x row {row}", "x")


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 3, 2, 1], pyarrow.int64()),
        ([0, 3, 2, 1], pyarrow.uint8()),
        ([0, 3, 2, 1], pyarrow.uint64()),
        ([0.0, 3.0, 2.0, 1.0], pyarrow.float64()),
        (np.array([0, 3, 2, 1], np.float16), None),
        ([decimal.Decimal(n) for n in (0, 3, 2, 1)], None),
        (["0", "3", "2", "1"], None),
        (["0", "3", "2", "1"], pyarrow.large_string()),
        (["a", "d", "c", "b"], pyarrow.string_view()),
        (["a", "d", "c", "b"], None),
    ],
)
def test_types_that_are_classes(values, kind):
    found = read(values, kind=kind)
    assert (found.values.tolist(), found.classes, found.note) == ([0, 3, 2, 1], 4, "")


def test_booleans():
    assert read([True, False]).values.tolist() == [1, 0]


def test_words_that_are_whole_numbers_are_classes_themselves():
    """As text they would be ordered 10, 2, 7."""
    found = read(["10", "2", "7"])
    assert (found.values.tolist(), found.classes) == ([10, 2, 7], 11)
    assert list(found.names) == ["2", "7", "10"]
    found = read(["10", "2", "x"])
    assert (found.values.tolist(), list(found.names)) == ([0, 1, 2], ["10", "2", "x"])


@pytest.mark.parametrize(
    "values",
    [[-1, -1], [-1.0, -1.0], ["-1", "-1"], [None, None], [NAN, None], ["", None], ["", ""]],
)
def test_unlabelled(values):
    found = read(values)
    assert found.values is None
    assert found.note.endswith(": read without")


@pytest.mark.parametrize("known", [(), ("a", "b")])
def test_unlabelled_also_where_the_classes_have_names(known):
    assert read([-1, -1], known).values is None
    with pytest.raises(ValueError, match=r"x: column label: 1 labels out of range 0 … 1, .* -1 of"):
        read([1, -1], known)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, None], "x row 1 has no label"),
        ([NAN, 1.0], "x row 0 has no label"),
        (["a", ""], "x row 1 has no label"),
        ([1.0, 0.5], r"x row 1: label is 0\.5, no class"),
        ([-5, -6], "2 labels out of range"),
        ([-(2**63), 0], "1 labels out of range"),
        ([[1], [2]], "holds list<item: int64>, not classes"),
        ([{"a": 1}], "holds struct<a: int64>, not classes"),
        ([b"a"], "holds binary, not classes"),
        ([datetime.date(2020, 1, 1)], "holds date32"),
        ([datetime.timedelta(1)], "holds duration"),
    ],
)
def test_what_is_no_class(values, message):
    with pytest.raises(ValueError, match=f"{message}"):
        read(values)


@pytest.mark.parametrize(
    ("values", "largest", "distinct"),
    [
        ([0, 1000003, 2000006], 2000006, 3),
        ([10**9, 0], 10**9, 2),
        ([10**15], 10**15, 1),
        ([2**63, 1], 2**63, 2),
        ([0, 50000, 99999], 99999, 3),
        (list(range(1500)), 1499, 1500),
        ([f"name {i}" for i in range(1500)], 1499, 1500),
        ([1e15, 1.0], 10**15, 2),
    ],
)
def test_ids(values, largest, distinct):
    kind = pyarrow.uint64() if values == [2**63, 1] else None
    message = f"x: column label goes up to {largest} with {distinct} distinct .*rather ids"
    with pytest.raises(ValueError, match=message):
        read(values, kind=kind)


def test_many_classes_are_no_ids():
    values = [i % 1500 for i in range(4500)]
    assert read(values).classes == 1500
    assert read([f"{value:04}" for value in values]).classes == 1500


def test_a_table_without_labels_says_so(tmp_path):
    images, _ = made(3)
    write_parquet(tmp_path / "x.parquet", map(encoded, images), label=[-1, -1, -1])
    dataset = Table(path=str(tmp_path)).read()
    assert dataset.labels is None
    told = "label is -1 everywhere, which means none: read without"
    assert dataset.notes["labels"] == told
