"""Files of tables: how much they hold, whether they fit together, and their rows."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.data.arrow_bounds import arrow_bytes, parquet_bytes
from fewstep.data.bounds import check_archive, check_bytes, check_lines, text_lines
from fewstep.data.index import file_hash

# By the end of a file's name, the reader of `datasets`.
READERS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".tar": "webdataset",
}

NO_ROWS = ("corresponds to no data", "Must pass at least one table")  # as `datasets` says it


def table_looked_at(file: Path) -> tuple[bytes, tuple[int, int, int]]:
    """The hash of a table's file, for an index. ValueError where it may not be opened."""
    reader = READERS[file.suffix.lower()]
    if reader == "webdataset":
        check_archive(file)
    if reader == "json":
        check_lines(file)
    if reader == "csv":
        for _ in text_lines(file):  # which looks at each
            pass
    if reader == "arrow":
        check_arrow(file)
    return file_hash(file), (0, 0, 0)


def check_arrow(file: Path) -> None:
    """ValueError where an Arrow file holds more than it may, or is damaged."""
    import pyarrow

    try:
        held = arrow_bytes(file)
    except (pyarrow.ArrowException, OSError, struct.error) as error:
        raise ValueError(f"{file} is damaged or cannot be used: {error}") from None
    check_bytes(file, held)


def same_columns(files: Sequence[Path]) -> list[int]:
    """How many rows each Parquet file has. ValueError where their columns differ."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    counts, first = [], None
    for file in files:
        try:
            with ParquetFile(file) as table:
                listed, count = table.schema_arrow.names, table.metadata.num_rows
                held = parquet_bytes(file, table.metadata)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{file} is damaged or cannot be used: {error}") from None
        check_bytes(file, held)
        _check_types(file, table.schema_arrow)
        names = set(listed)
        for name in names:
            if listed.count(name) > 1:
                raise ValueError(f"{file} has several columns of the name {name}")
        first = names if first is None else first
        if names != first:
            some = ", ".join(sorted(names ^ first))
            told = ", ".join(map(str, files))
            raise ValueError(f"columns in some files only, {some}: {told}")
        counts.append(count)
    return counts


def _check_types(file: Path, schema: Any) -> None:
    """ValueError that names the first column of a type that `datasets` does not read."""
    from pyarrow import types

    for field in schema:
        if types.is_map(field.type):
            raise ValueError(
                f"{file}: column {field.name} holds {field.type}, which is neither pictures, "
                "classes nor captions: leave it out"
            )


def opened(files: Sequence[Path]) -> Any:
    """The rows of files of one format, as a memory-mapped `datasets.Dataset`."""
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    import datasets

    reader = READERS[files[0].suffix.lower()]
    options: dict[str, Any] = {}
    if reader == "parquet":
        from pyarrow.dataset import ParquetFragmentScanOptions

        options["fragment_scan_options"] = ParquetFragmentScanOptions(
            page_checksum_verification=True
        )
    if files[0].suffix.lower() == ".tsv":
        options["sep"] = "\t"
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        return datasets.load_dataset(
            reader, data_files={"train": [str(file) for file in files]}, split="train", **options
        )
    except Exception as error:  # what is damaged makes it raise types of several libraries
        if any(text in str(error.__cause__ or error) for text in NO_ROWS):
            raise ValueError(f"no rows: {', '.join(map(str, files))}") from None
        raise unusable(files, error.__cause__ or error) from None


def unusable(files: Sequence[Path], error: BaseException) -> ValueError:
    """The error of tables that a library refuses."""
    told = ", ".join(map(str, files))
    reason = " ".join(str(error).split())
    return ValueError(f"{told} is damaged or cannot be used: {reason}")
