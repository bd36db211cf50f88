"""Tables of pictures: Parquet, Arrow, CSV, JSON lines and WebDataset, read by Hugging Face's
`datasets` (extra `fewstep[data]`), memory-mapped. No code of a data set is ever run.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.choice import Natural
from fewstep.data.dataset import Dataset, Rows
from fewstep.data.index import indexed
from fewstep.data.labels import check_labels
from fewstep.data.lazy import MEMORY, Encoded, Stored, decoded, pictures
from fewstep.data.metadata import unwarned
from fewstep.data.pictures import Channels, How, OnBad, checked_header, header
from fewstep.data.source import Source
from fewstep.data.splits import of_training
from fewstep.data.table_files import READERS, opened, same_columns, table_looked_at
from fewstep.data.tree import files_below
from fewstep.files import load_tensors, replace_tensors
from fewstep.models.space import Classes, Column, Text, Vectors

IMAGES = ("img", "image", "jpg", "jpeg", "png", "webp", "file_name", "image_path", "path")
LABELS = ("label", "fine_label", "labels", "cls", "class")
CAPTIONS = ("caption", "text", "prompt", "txt")
OTHERS = ("latent", "embedding")
MOST_CLASSES = 100_000
LOOKED_AT_ANYWAY = 100_000  # rows whose pictures take seconds to look at
CHUNK = 256  # rows whose pictures are looked at together
Look = Callable[[bytes], tuple[int, int, int]]


@dataclass(frozen=True)
class Table(Source):
    """A file, or a folder with files in it or one level below, of one format; those of a training
    set where there are others too.

    Pictures are embedded, or a column names their files, relative to the table's own folder (a
    folder of pictures with metadata.csv or metadata.jsonl). A table may hold prompts only.
    """

    path: str = ""
    """The file or folder."""
    image: str = "auto"
    """The column of pictures, or of their files; auto: img, image, jpg, file_name and the like."""
    label: str = "auto"
    """The column of classes; auto: label, fine_label, cls and the like; none: without."""
    caption: str = "auto"
    """The column of captions; auto: caption, text, prompt, txt; none: without."""
    size: Natural = 0
    """The short side becomes so many pixels and the middle square is cut out; 0: as they are."""
    channels: Channels = "auto"
    """grey, rgb; auto: grey if all pictures are."""
    on_bad: OnBad = "error"
    """What a picture does that cannot be read: end the run, or be left out, up to 1 % of all."""

    @classmethod
    def files_at(cls, path: Path) -> list[Path]:
        by_reader: dict[str, list[Path]] = {}
        below = files_below(path, 2)
        for file in below:
            if reader := READERS.get(file.suffix.lower()):
                by_reader.setdefault(reader, []).append(file)
        metadata = [file for file in below if file.stem.lower() == "metadata"]
        metadata = [file for file in metadata if READERS.get(file.suffix.lower())]
        if metadata and path.is_dir():  # it speaks for the pictures beside it
            return metadata[:1] + [file for file in below if file not in metadata]
        if not by_reader:
            return []
        largest = max(by_reader.values(), key=lambda files: sum(f.stat().st_size for f in files))
        return of_training(largest, path)

    def read(self, beside: Path | None = None) -> Dataset:
        files = self.found(self.path, "Parquet, Arrow, CSV, JSON lines or tar files")
        if files[0].stem.lower() == "metadata":
            files = files[:1]
        return self.read_files(files, beside)

    def read_files(
        self, files: Sequence[Path], beside: Path | None = None, memory: int | None = MEMORY
    ) -> Dataset:
        """Everything in these files, one after the other, in memory where the decoded pictures have
        so few bytes, or however many (None). ImportError without `datasets`; else as `read`.
        """
        where = ", ".join(map(str, files))
        contents = self._contents(files, beside)
        stored = self._rows(files, where)
        held: dict[str, Tensor] = {}
        columns: dict[str, Column] = {}
        names: list[str] = []
        if "label" in stored.named:
            held["label"], names, classes = stored.labels(stored.named["label"])
            check_labels(held["label"], classes, where)
            columns["label"] = Classes(classes)
        notes = {"files": where, "class names": ", ".join(names[:100]) or "unknown"}
        how = How(self.size, self.channels, self.on_bad)
        if memory is None:
            if "image" not in stored.named:
                raise ValueError(f"{where} has no pictures, only {', '.join(stored.named)}")
            return decoded(stored, held, columns, how, notes, self.workers)
        stamp = hashlib.sha256(f"{contents} {stored.named}".encode()).hexdigest()
        if "image" not in stored.named:
            return Stored(stored, held, columns, how, stamp, torch.arange(len(stored)), notes)
        looked = None
        if self._looks(len(stored)):
            checks = self.on_bad == "skip"
            name = f"{'checked' if checks else 'rows'}-{stamp[:16]}.safetensors"
            kept = None if beside is None else beside / name
            looked = stored.headers(kept, checked_header if checks else header)
        return pictures(stored, looked, held, columns, how, stamp, notes, self.workers, memory)

    def _rows(self, files: Sequence[Path], where: str) -> TableRows:
        """The columns that are used. ValueError where there are none, or no rows."""
        try:
            import datasets  # noqa: F401
        except ImportError:
            raise ImportError(
                f"{files[0]}: tables need Hugging Face's datasets: pip install 'fewstep[data]'"
            ) from None
        counts = same_columns(files) if READERS[files[0].suffix.lower()] == "parquet" else []
        if counts and not any(counts):
            raise ValueError(f"no rows: {where}")
        rows = opened(files)
        if not len(rows):
            raise ValueError(f"no rows: {where}")
        return TableRows(rows, self._named(rows.column_names, where), files, counts)

    def _contents(self, files: Sequence[Path], beside: Path | None) -> str:
        """A hash of the files, of which each was found to hold no more than it may."""
        kept = None if beside is None else beside / "files.safetensors"
        names = [str(file) for file in files]
        return indexed(files, names, table_looked_at, kept).stamp()

    def _looks(self, rows: int) -> bool:
        """Whether every picture's header is looked at before the first is used: where something has
        to be known of all, or it takes no more than seconds.
        """
        said = self.size > 0 and self.channels != "auto" and self.on_bad == "error"
        return not said or rows <= LOOKED_AT_ANYWAY

    def _named(self, there: Sequence[str], where: str) -> dict[str, str]:
        """The table's name of each column that is used. ValueError where one that was asked for is
        not there, or nothing is.
        """
        wanted = {
            "image": (self.image, IMAGES),
            "label": (self.label, LABELS),
            "caption": (self.caption, CAPTIONS),
        }
        named = {}
        for column, (asked, known) in wanted.items():
            if asked == "none":
                continue
            if asked != "auto" and asked not in there:
                raise ValueError(f"{where} has no column {asked}, only {', '.join(there)}")
            found = [asked] if asked != "auto" else [name for name in known if name in there]
            if found:
                named[column] = found[0]
        for column in OTHERS:
            if column in there:
                named[column] = column
        if not {"image", "latent", "caption"} & set(named):
            listed = " or ".join(IMAGES[:2])
            raise ValueError(f"{where} has no column {listed}, only {', '.join(there)}")
        return named


class TableRows(Encoded):
    """Rows of a `datasets.Dataset`; `named` says which of its columns are which of ours, `counts`
    how many rows each file has, where that is known.
    """

    def __init__(
        self, rows: Any, named: Mapping[str, str], files: Sequence[Path], counts: Sequence[int]
    ):
        import datasets
        import pyarrow

        self.named, self.files = dict(named), [str(file) for file in files]
        self.ends = list(itertools.accumulate(counts))
        self.root = Path(files[0]).parent
        if "image" in named:
            try:
                rows = rows.cast_column(named["image"], datasets.Image(decode=False))
            except (pyarrow.ArrowException, TypeError, ValueError) as error:
                reason = f"column {named['image']} holds no pictures"
                raise ValueError(f"{files[0]} row 0: {reason} ({error})") from None
        self.rows = rows.select_columns(list(dict.fromkeys(named.values())))
        self.columns = {}
        if "caption" in named:
            self.columns["caption"] = Text()
        for name in OTHERS:
            if name in named:
                first = torch.as_tensor(self.rows[0][named[name]])
                self.columns[name] = Vectors(tuple(first.shape))

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, place: int) -> str:
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
        file = (self.root / (picture["path"] or "")).resolve()
        if not picture["path"] or self.files[0].endswith((".parquet", ".arrow")):
            raise ValueError(f"{self.name(place)}: the picture is not embedded")
        if not file.is_relative_to(self.root.resolve()):
            raise ValueError(f"{self.name(place)}: {picture['path']} lies outside {self.root}")
        return file.read_bytes()

    def beside(self, places: Sequence[int], names: Sequence[str]) -> Rows:
        columns = [self.named[name] for name in names]
        read = self.rows.select_columns(columns)[list(places)]
        found: Rows = {}
        for name in names:
            values = read[self.named[name]]
            if isinstance(self.columns[name], Text):
                found[name] = ["" if text is None else str(text) for text in values]
            else:
                found[name] = torch.as_tensor(values, dtype=torch.float32)
        return found

    def labels(self, column: str) -> tuple[Tensor, list[str], int]:
        """All labels as whole numbers, the names of the classes where known, and how many."""
        import datasets
        import pyarrow

        feature = self.rows.features[column]
        values = self.rows.data.column(column)
        if values.null_count:
            first = values.is_null().index(True).as_py()
            raise ValueError(f"{self.name(first)} has no {column}")
        names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else []
        if pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type):
            names = sorted(set(values.unique().to_pylist()))
            numbers = {name: number for number, name in enumerate(names)}
            found = torch.tensor([numbers[name] for name in values.to_pylist()])
        elif pyarrow.types.is_integer(values.type):
            found = torch.from_numpy(values.cast("int64").to_numpy().copy())
        else:
            raise ValueError(f"{self.files[0]}: {column} holds {values.type}, not classes")
        classes = len(names) or int(found.max()) + 1
        if classes > MOST_CLASSES:
            raise ValueError(
                f"{self.files[0]}: {column} goes up to {classes - 1}: rather ids than classes "
                f"({len(found.unique())} distinct); label=none reads without"
            )
        return found, names, classes

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
