"""The rows of a table: pictures, captions, vectors, each of a type that is one."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.captions import Captions, missing, rows_of
from fewstep.data.dataset import Rows
from fewstep.data.lazy import Encoded
from fewstep.data.metadata import unwarned
from fewstep.data.pictures import header
from fewstep.data.table_captions import caption_counts, texts_of, with_shorter
from fewstep.data.table_labels import Read, read_labels
from fewstep.files import load_tensors, replace_tensors
from fewstep.models.space import Column, Text, Texts, Vectors

VECTORS = ("latent", "embedding")
OWNER = {"captions": "caption"}  # columns of ours that stand in a table's column of another
CHUNK = 256  # rows whose pictures are looked at together
Look = Callable[[bytes], tuple[int, int, int]]


class TableRows(Encoded):
    """Rows of a `datasets.Dataset`; `named` says which of its columns are which of ours, `counts`
    how many rows each file has, where that is known. taken: the places of the rows that are
    used, and what is said of the others. ValueError where a column's type is none of its kind.
    """

    def __init__(
        self,
        rows: Any,
        named: Mapping[str, str],
        files: Sequence[Path],
        counts: Sequence[int],
        taken: tuple[Sequence[int], str] | None = None,
    ):
        self.named, self.files = dict(named), [str(file) for file in files]
        self.places, self.left = taken or (range(len(rows)), "")
        self.ends = list(itertools.accumulate(counts))
        self.root = Path(files[0]).parent
        self.rows = rows.select_columns(list(dict.fromkeys(named.values())))
        if self.left:  # the Arrow columns shall hold no others
            self.rows = self.rows.select(self.places).flatten_indices()
        self.columns: dict[str, Column] = {}
        self.notes: dict[str, str] = {}
        self.unsaid = named.get("unsaid", "")
        if "image" in named:
            self._pictures(named["image"])
        if "caption" in named:
            self._captions(named["caption"])
        for name in VECTORS:
            if name in named:
                self.columns[name] = Vectors(self._vector_shape(named[name]))

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, place: int) -> str:
        place = self.places[place]
        if not self.ends:
            return f"{self.files[0] if len(self.files) == 1 else self.root} row {place}"
        file = bisect.bisect_right(self.ends, place)
        return f"{self.files[file]} row {place - (self.ends[file - 1] if file else 0)}"

    def contents(self, places: Sequence[int]) -> list[bytes]:
        found = []
        column = self.named["image"]
        for place, picture in zip(places, self.rows.select_columns([column])[list(places)][column]):
            found.append(self._content(place, picture))
        return found

    def _content(self, place: int, picture: Any) -> bytes:
        if picture is None or (picture["bytes"] is None and picture["path"] is None):
            return b""
        if picture["bytes"] is not None:
            return bytes(picture["bytes"])
        if "\0" in (picture["path"] or ""):
            raise ValueError(f"{self.name(place)}: {picture['path']!r} is no name of a file")
        file = (self.root / (picture["path"] or "")).resolve()
        if not picture["path"] or self.files[0].endswith((".parquet", ".arrow")):
            raise ValueError(f"{self.name(place)}: the picture is not embedded")
        if not file.is_relative_to(self.root.resolve()):
            raise ValueError(f"{self.name(place)}: {picture['path']} lies outside {self.root}")
        return file.read_bytes()

    def beside(self, places: Sequence[int], names: Sequence[str]) -> Rows:
        columns = {name: self.named[OWNER.get(name, name)] for name in names}
        wanted = {*columns.values(), *([self.unsaid] if self.unsaid else [])}
        read = self.rows.select_columns(sorted(wanted))[list(places)]
        found: Rows = {}
        for name, called in columns.items():
            values, column = read[called], self.columns[name]
            if isinstance(column, Vectors):
                found[name] = self._vectors(values, column.shape, places, name)
            else:
                found |= rows_of(self._texts(values, read.get(self.unsaid)), [name])
        return found

    def _texts(self, values: Sequence[Any], unsaid: Sequence[Any] | None) -> list[Captions]:
        """The captions of rows; unsaid: the words that these may leave out."""
        captions = [texts_of(value) for value in values]
        if unsaid is None:
            return captions
        return [with_shorter(some, texts_of(words)) for some, words in zip(captions, unsaid)]

    def paths(self) -> list[Path]:
        """The files of pictures that are not embedded."""
        if "image" not in self.named or self.files[0].endswith((".parquet", ".arrow", ".tar")):
            return []
        found: list[Path] = []
        for chunk in self.rows.data.column(self.named["image"]).chunks:
            found.extend(self.root / path for path in chunk.field("path").to_pylist() if path)
        return found

    def labels(self, column: str) -> Read:
        """All labels as whole numbers, and what is known of the classes."""
        known = getattr(self.rows.features[column], "names", None) or []
        where = self.files[0] if len(self.files) == 1 else str(self.root)
        return read_labels(self.rows.data.column(column), known, column, self.name, where)

    def headers(self, beside: Path | None, look: Look = header) -> Tensor:
        """(n, 3) as `look` gives them, of all rows; from the file `beside` where it is there."""
        if beside is not None and beside.is_file():
            return load_tensors(beside)["headers"]
        looked = torch.zeros(len(self), 3, dtype=torch.int32)
        for first in range(0, len(self), CHUNK):
            places = range(first, min(len(self), first + CHUNK))
            with unwarned():
                looks = [look(content) for content in self.contents(places)]
            looked[places.start : places.stop] = torch.tensor(looks, dtype=torch.int32)
        if beside is not None:
            replace_tensors(beside, {"headers": looked})
        return looked

    def _kind(self, column: str) -> Any:
        kind = self.rows.data.column(column).type
        return getattr(kind, "storage_type", kind)

    def _pictures(self, column: str) -> None:
        """Makes the column one of {bytes, path}. ValueError where it cannot be, or all of it is
        missing.
        """
        import datasets
        import pyarrow

        kind = self._kind(column)
        if not _holds_pictures(kind):
            raise ValueError(f"{self.files[0]} row 0: column {column} holds {kind}, no pictures")
        try:
            self.rows = self.rows.cast_column(column, datasets.Image(decode=False))
        except (pyarrow.ArrowException, TypeError, ValueError, KeyError) as error:
            reason = f"column {column} holds no pictures"
            raise ValueError(f"{self.files[0]} row 0: {reason} ({error})") from None
        if all(_nothing(chunk) for chunk in self.rows.data.column(column).chunks):
            raise ValueError(
                f"{self.files[0]}: no row of column {column} holds a picture: they are not embedded"
            )

    def _captions(self, column: str) -> None:
        counts = caption_counts(self.rows.data.column(column))
        if counts is None:
            raise ValueError(
                f"{self.files[0]}: column {column} holds {self._kind(column)}, not texts; "
                "caption=none reads without"
            )
        if not counts.any():
            self.notes["captions"] = f"{column} is missing everywhere: read without"
            return
        gone = [self.name(place) for place in (counts == 0).nonzero()[0].tolist()]
        self.notes |= missing(gone, len(counts), "rows")
        self.columns["caption"] = Text()
        if counts.max() > 1 or self.unsaid:
            self.columns["captions"] = Texts()

    def _vector_shape(self, column: str) -> tuple[int, ...]:
        """Of the first row, which all others must have."""
        from pyarrow import types

        kind = self._kind(column)
        while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            kind = kind.value_type
        if kind == self._kind(column) or not (types.is_floating(kind) or types.is_integer(kind)):
            raise ValueError(
                f"{self.files[0]}: column {column} holds {self._kind(column)}, no vectors"
            )
        first = self._vector(self.rows[0][column], 0, column)
        if not first.numel():
            raise ValueError(f"{self.name(0)}: {column} is empty")
        return tuple(first.shape)

    def _vector(self, value: Any, place: int, column: str) -> Tensor:
        try:
            found = torch.as_tensor(value, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{self.name(place)}: {column} holds no vector") from None
        if not bool(found.isfinite().all()):
            raise ValueError(f"{self.name(place)}: {column} holds numbers that are not finite")
        return found

    def _vectors(
        self, values: Sequence[Any], shape: tuple[int, ...], places: Sequence[int], name: str
    ) -> Tensor:
        """(n, *shape). ValueError names the row that differs."""
        found = torch.empty(len(values), *shape)
        for row, (value, place) in enumerate(zip(values, places)):
            one = self._vector(value, place, self.named[name])
            if tuple(one.shape) != shape:
                column = self.named[name]
                told = f"{tuple(one.shape)}, in row 0 {shape}"
                raise ValueError(f"{self.name(place)}: {column} has the shape {told}")
            found[row] = one
        return found


def _holds_pictures(kind: Any) -> bool:
    """Bytes, names of files, or both as `datasets` has them."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        if "bytes" not in fields:
            return "path" in fields
        kind = fields["bytes"]
    elif types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return True
    return types.is_binary(kind) or types.is_large_binary(kind) or bool(types.is_null(kind))


def _nothing(chunk: Any) -> bool:
    """Whether all pictures of a chunk lack both content and path."""
    from pyarrow import compute

    columns = [compute.struct_field(chunk, name) for name in ("bytes", "path")]
    return all(column.null_count == len(chunk) for column in columns)
