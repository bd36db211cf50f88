"""Tables that name the files of pictures, as their first rows tell."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from fewstep.data.layout import SUFFIXES
from fewstep.data.table_files import READERS

IMAGES = (
    *("img", "image", "jpg", "jpeg", "jpe", "jfif", "png", "webp"),
    *("file_name", "image_path", "path"),
)
HEAD = 1 << 16  # bytes of a table that are looked at
ROWS = 20  # of them


def first_of(known: Sequence[str], there: Sequence[str]) -> str | None:
    """The first of the known names that is there, in any case."""
    for wanted in known:
        for name in (wanted, *there):
            if name in there and name.lower() == wanted:
                return name
    return None


def speaking(files: Sequence[Path]) -> list[Path]:
    """Those of the files that are tables of pictures beside them: called metadata, or else such
    whose first rows name a picture that lies where they say.
    """
    tables = [file for file in files if READERS.get(file.suffix.lower())]
    metadata = [file for file in tables if file.stem.lower() == "metadata"]
    if metadata:
        return metadata
    found = []
    for file in tables:
        if any(_is_picture(file, name) for name in named_pictures(file)):
            found.append(file)
    return found


def check_unheard(files: Sequence[Path]) -> None:
    """ValueError where one of these files is a table that names pictures, which lie elsewhere."""
    for file in files:
        if names := named_pictures(file):
            raise ValueError(
                f"{file} names pictures ({names[0]}) that do not lie where it says, beside others: "
                "kind=table reads the table, kind=folder the pictures alone"
            )


def named_pictures(file: Path) -> list[str]:
    """What the first rows of a table have in the column of pictures' files."""
    found = []
    for row in _first_rows(file):
        column = first_of(IMAGES, [name for name in row if isinstance(name, str)])
        name = row.get(column)
        if isinstance(name, str) and name:
            found.append(name)
    return found


def _is_picture(table: Path, name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and os.path.isfile(table.parent / name)


def _first_rows(file: Path) -> list[dict[Any, Any]]:
    """By column; none where it is no table that can be looked into."""
    reader = READERS.get(file.suffix.lower())
    if reader == "parquet":
        return _of_parquet(file)
    if reader not in ("csv", "json"):
        return []
    with file.open("rb") as stream:
        lines = stream.read(HEAD).decode("utf-8-sig", errors="replace").splitlines()
    rows = _of_json(lines) if reader == "json" else _of_csv(lines, file.suffix.lower())
    return list(islice(rows, ROWS))


def _of_csv(lines: Sequence[str], suffix: str) -> Iterator[dict[Any, Any]]:
    try:
        yield from csv.DictReader(lines, delimiter="\t" if suffix == ".tsv" else ",")
    except csv.Error:
        return


def _of_json(lines: Sequence[str]) -> Iterator[dict[Any, Any]]:
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # the last one may be cut
            return
        if isinstance(row, dict):
            yield row


def _of_parquet(file: Path) -> list[dict[Any, Any]]:
    """Of the columns of text alone, for pictures may be large; none without pyarrow, and of what is
    damaged, which is an error where it is read.
    """
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        return []
    try:
        with ParquetFile(file) as table:
            texts = [one.name for one in table.schema_arrow if pyarrow.types.is_string(one.type)]
            if not texts or table.metadata.num_rows == 0:
                return []
            rows: list[dict[Any, Any]] = next(table.iter_batches(ROWS, columns=texts)).to_pylist()
            return rows
    except (pyarrow.ArrowException, OSError):
        return []
