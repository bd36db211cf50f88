"""The labels of a table: a column of any type as class numbers, or why it holds no classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fewstep.data.labels import UNLABELLED, check_ids, check_labels, numbered

Name = Callable[[int], str]
WITHOUT = "; label=none reads without"


class Read(NamedTuple):
    """values: (n,) in 0 … classes - 1; None where all are missing or -1. names: by their number,
    where they are known. note: what is to be said of them.
    """

    values: Tensor | None
    classes: int = 0
    names: Sequence[str] = ()
    note: str = ""


def read_labels(values: Any, known: Sequence[str], column: str, name: Name, where: str) -> Read:
    """The labels of a column.

    values: pyarrow's. known: names of the classes, where the table has them. name: by which
    messages call a row; where: the same for the table. Raises ValueError for what are no classes.
    """
    from pyarrow import types

    what, kind = f"{where}: column {column}", values.type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return _words(values.cast("string"), column, name, what)
    if types.is_floating(kind) or types.is_decimal(kind):
        values = _whole(values.cast("float64"), column, name)
    elif types.is_boolean(kind):
        values = values.cast("uint8")
    elif not (types.is_integer(kind) or types.is_null(kind)):
        raise ValueError(f"{what} holds {kind}, not classes{WITHOUT}")
    return _numbers(values, known, column, name, what)


def _whole(values: Any, column: str, name: Name) -> Any:
    """Floats of which nothing is lost; what is no number is missing."""
    from pyarrow import compute

    values = compute.if_else(compute.is_finite(values), values, None)
    first = compute.index(compute.not_equal(values, compute.floor(values)), True).as_py()
    if first >= 0:
        broken = values[first].as_py()
        raise ValueError(f"{name(first)}: {column} is {broken}, no class{WITHOUT}")
    return values


def _missing(values: Any, column: str, name: Name) -> bool:
    """Whether all are missing. ValueError where some are."""
    if values.null_count == len(values):
        return True
    if values.null_count:
        first = values.is_null().index(True).as_py()
        raise ValueError(f"{name(first)} has no {column}{WITHOUT}")
    return False


def _numbers(values: Any, known: Sequence[str], column: str, name: Name, what: str) -> Read:
    from pyarrow import compute

    if _missing(values, column, name):
        return Read(None, note=f"{column} is missing everywhere: read without")
    ends, distinct = compute.min_max(values).as_py(), compute.count_distinct(values).as_py()
    if ends["min"] == ends["max"] == -1:
        return Read(None, note=f"{column} is {UNLABELLED}")
    if not known or ends["max"] > len(known) + 2**31:
        check_ids(int(ends["max"]), distinct, len(values), what, WITHOUT)
    found = torch.from_numpy(values.cast("int64").to_numpy().copy())
    classes = len(known) or max(int(ends["max"]), 0) + 1
    check_labels(found, classes, what)
    return Read(found, classes, known)


def _words(values: Any, column: str, name: Name, what: str) -> Read:
    from pyarrow import compute

    values = compute.if_else(compute.equal(values, ""), None, values)
    if _missing(values, column, name):
        return Read(None, note=f"{column} is missing everywhere: read without")
    encoded = values.combine_chunks().dictionary_encode()
    words = encoded.dictionary.to_pylist()
    if words == ["-1"]:
        return Read(None, note=f"{column} is {UNLABELLED}")
    numbers, classes = numbered(words)
    check_ids(classes - 1, len(words), len(values), what, WITHOUT)
    by_word = np.array([numbers[word] for word in words], np.int64)
    found = torch.from_numpy(by_word[encoded.indices.to_numpy()])
    return Read(found, classes, list(numbers))
