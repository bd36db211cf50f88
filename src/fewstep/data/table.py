"""Tables of pictures: Parquet, Arrow, CSV, JSON lines and WebDataset, read by Hugging Face's
`datasets` (extra `fewstep[data]`), memory-mapped. No code of a data set is ever run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewstep.choice import Natural
from fewstep.data.dataset import Dataset
from fewstep.data.index import indexed
from fewstep.data.labels import listed
from fewstep.data.lazy import MEMORY, Stored, decoded, pictures
from fewstep.data.picture_tables import IMAGES, first_of, speaking
from fewstep.data.pictures import Channels, How, OnBad, checked_header, header
from fewstep.data.source import Source, bytes_of, located
from fewstep.data.splits import check_sets, of_training
from fewstep.data.table_files import READERS, opened, same_columns, table_looked_at
from fewstep.data.table_rows import VECTORS, TableRows
from fewstep.data.table_sets import NAMES as SETS
from fewstep.data.table_sets import training_rows
from fewstep.data.tree import files_below, left_beside
from fewstep.models.space import Classes, Column, Space, image_space

LABELS = ("label", "fine_label", "labels", "cls", "class")
CAPTIONS = ("caption", "text", "prompt", "txt", "captions")
LOOKED_AT_ANYWAY = 100_000  # rows whose pictures take seconds to look at
WHAT = "Parquet, Arrow, CSV, JSON lines or tar files"


@dataclass(frozen=True)
class Table(Source):
    """A file, or a folder with files in it or below, of one format; those of a training set where
    there are others too. What else lies there, and columns that are not used, are named.

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
    """The column of captions; auto: caption, text, prompt, txt, captions; none:
    without. An entry may be a list of several."""
    unsaid: str = "none"
    """A column of words that captions may leave out: a caption that holds them has a second one
    without them. none: captions are as they are."""
    sets: str = "auto"
    """The column that says of which set (train, test, val …) a row is: those of the training set
    are used; auto: split; none: all rows."""
    size: Natural = 0
    """The short side becomes so many pixels and the middle square is cut out; 0: as they are."""
    channels: Channels = "auto"
    """grey, rgb; auto: grey if all pictures are."""
    on_bad: OnBad = "error"
    """What a picture does that cannot be read: end the run (error), or be left out, up to 1 % of
    all (skip) or any number of them (skip_all)."""

    def foreseen(self) -> Space | None:
        """Where size, channels and that there are no classes is said."""
        shape = How(self.size, self.channels).shape
        return image_space(shape) if shape and self.label == "none" else None

    @classmethod
    def files_at(cls, path: Path) -> list[Path]:
        below = files_below(path)
        tables = speaking(below) if path.is_dir() else []
        if tables:  # they speak for the pictures beside them
            return _of_one_format(tables, path) + [file for file in below if file not in tables]
        return _of_one_format([f for f in below if READERS.get(f.suffix.lower())], path)

    def read(self, beside: Path | None = None) -> Dataset:
        files = self.found(self.path, WHAT)
        path = located(self.path, WHAT)
        if path.is_dir() and (tables := speaking(files)):
            files = _of_one_format(tables, path)
            check_sets(files, path)
            folders = list(dict.fromkeys(file.parent for file in files))
            if len(folders) > 1:
                told = listed(folders[:3])
                raise ValueError(f"several folders hold metadata, {told}: data.path= names one")
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
        notes = {"files": where, "class names": "unknown"}
        if "label" in stored.named:
            values, classes, names, note = stored.labels(stored.named["label"])
            notes |= {"labels": note} if note else {}
            notes |= {"class names": listed(names)} if names else {}
            if values is not None:
                held["label"], columns["label"] = values, Classes(classes)
        notes |= stored.notes
        notes |= self._passed_over(files, stored)
        how = How(self.size, self.channels, self.on_bad)
        if memory is None:
            if "image" not in stored.named:
                raise ValueError(f"{where} has no pictures, only {', '.join(stored.named)}")
            return decoded(stored, held, columns, how, notes, self.workers)
        stamp = hashlib.sha256(f"{contents} {stored.named}{stored.left}".encode()).hexdigest()
        if "image" not in stored.named:
            if not stored.columns:
                raise ValueError(f"{where} has nothing to train on: {', '.join(notes.values())}")
            return Stored(stored, held, columns, how, stamp, torch.arange(len(stored)), notes)
        looked = None
        if self._looks(len(stored)):
            checks = self.on_bad != "error"
            name = f"{'checked' if checks else 'rows'}-{stamp[:16]}.safetensors"
            kept = None if beside is None else beside / name
            looked = stored.headers(kept, checked_header if checks else header)
        return pictures(stored, looked, held, columns, how, stamp, notes, self.workers, memory)

    def _passed_over(self, files: Sequence[Path], stored: TableRows) -> dict[str, str]:
        """The note on rows and files that are not used; none where there are no such."""
        told = [stored.left] if stored.left else []
        if self.path:
            told.extend(left_beside(Path(self.path), [*files, *stored.paths()]).values())
        return {"passed over": "; ".join(told)} if told else {}

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
        named = self._named(rows.column_names, where)
        sets = named.pop("set", "")
        taken = None
        if sets and sets not in named.values():  # else it is asked for as something else
            taken = training_rows(rows.data.column(sets), f"{where}: column {sets}")
        stored = TableRows(rows, named, files, counts, taken)
        used = {*named.values(), *([sets] if taken else [])}
        unused = [name for name in rows.column_names if name not in used]
        if unused := [name for name in unused if not name.startswith("__")]:  # of WebDataset itself
            stored.notes["columns not used"] = listed(unused)
        return stored

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
            "unsaid": (self.unsaid, ()),
            "set": (self.sets, SETS),
        }
        named = {}
        for column, (asked, known) in wanted.items():
            if asked not in ("auto", "none", *there):
                raise ValueError(f"{where} has no column {asked}, only {', '.join(there)}")
            if found := first_of(known, there) if asked == "auto" else asked:
                named[column] = found
        named = {column: name for column, name in named.items() if name != "none"}
        for column in VECTORS:
            if found := first_of((column,), there):
                named[column] = found
        if not {"image", "latent", "caption"} & set(named):
            told = f"{' or '.join(IMAGES[:2])} of pictures, nor {', '.join(CAPTIONS[:3])} of texts"
            raise ValueError(f"{where} has no column {told}, only {', '.join(there)}")
        return named


def _of_one_format(tables: Sequence[Path], path: Path) -> list[Path]:
    """Those of the training set, of the format that has the most bytes."""
    by_reader: dict[str, list[Path]] = {}
    for file in of_training(tables, path, True):
        if not file.name.startswith("cache-"):  # what `datasets` computed
            by_reader.setdefault(READERS[file.suffix.lower()], []).append(file)
    return max(by_reader.values(), key=bytes_of, default=[])
