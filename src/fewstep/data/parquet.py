"""Parquet files with encoded pictures, as Hugging Face's datasets are stored. Needs the extra
`fewstep[data]`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fewstep.choice import Natural
from fewstep.data.dataset import Dataset, held_images
from fewstep.data.pictures import Channels, OnBad, decode_all
from fewstep.data.source import Source, check_labels, files_below, of_training

IMAGES, LABELS = ("img", "image"), ("label", "fine_label", "labels")


@dataclass(frozen=True)
class Parquet(Source):
    """A file, or a folder with files in it or one level below; those of a training set where there
    are others too.

    Pictures are in the column `img` or `image`, whole numbers as classes in `label`.
    """

    path: str = ""
    """The folder or file."""
    label: str = "auto"
    """The column of the classes; auto: the first of label, fine_label and labels, if any."""
    size: Natural = 0
    """Short side of a picture in pixels, its middle square is kept; 0 keeps sizes, which must be
    equal."""
    channels: Channels = "auto"
    """1 channel for grey, 3 for rgb; auto takes 1 if all pictures are grey."""
    workers: Natural = 0
    """Threads that decode; their number changes nothing."""
    on_bad: OnBad = "error"
    """skip leaves out what cannot be read, up to 1 % of all, each named; else it is an error."""

    @classmethod
    def files_at(cls, path: Path) -> list[Path]:
        return of_training(
            [file for file in files_below(path, 2) if file.suffix == ".parquet"], path
        )

    def read(self) -> Dataset:
        return self.read_files(self.found(self.path, "Parquet files"))

    def read_files(self, files: Sequence[Path]) -> Dataset:
        """Everything in these files, one after the other. ImportError without pyarrow; else as
        `read`.
        """
        pictures: list[tuple[str, Path | bytes]] = []
        numbers: list[int] = []
        names: list[str] = []
        for file in files:
            contents, labels, names = self._columns(file)
            pictures += [(f"{file} row {i}", content or b"") for i, content in enumerate(contents)]
            numbers += labels
        where = ", ".join(map(str, files))
        if not pictures or len(numbers) not in (0, len(pictures)):
            raise ValueError(f"no rows, or labels in some files only: {where}")
        images, places, notes = decode_all(
            pictures, self.size, self.channels, self.workers, self.on_bad
        )
        targets = torch.tensor(numbers)[places] if numbers else None
        classes = 0 if targets is None else len(names) or max(numbers) + 1
        if targets is not None:
            check_labels(targets, classes, where)
        notes = {"files": where, "class names": ", ".join(names) or "unknown"} | notes
        return held_images(images, targets, classes, places, notes)

    def _columns(self, file: Path) -> tuple[list[bytes | None], list[int], list[str]]:
        """Encoded pictures, labels (or none) and names of the classes (or none) of one file."""
        try:
            import pyarrow
            from pyarrow.parquet import ParquetFile
        except ImportError:
            raise ImportError(
                f"{file}: Parquet needs pyarrow: pip install 'fewstep[data]'"
            ) from None
        try:
            with ParquetFile(file, page_checksum_verification=True) as table:
                columns = table.schema_arrow.names
                wanted = LABELS if self.label == "auto" else (self.label,)
                image = next((name for name in IMAGES if name in columns), "")
                label = next((name for name in wanted if name in columns), "")
                if not image or not (label or self.label == "auto"):
                    raise ValueError(
                        f"no column {' or '.join(wanted if image else IMAGES)}, only "
                        f"{', '.join(columns)}"
                    )
                inner = pyarrow.types.is_struct(table.schema_arrow.field(image).type)
                rows = table.read(
                    [f"{image}.bytes" if inner else image, *([label] if label else [])]
                )
                names = _class_names(table.schema_arrow.metadata, label)
            labels = rows[label].cast("int64").to_pylist() if label else []
            if None in labels:
                raise ValueError(f"row {labels.index(None)} has no {label}")
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"{file} is damaged or cannot be used: {error}") from None
        contents = [
            c
            for chunk in rows[image].chunks
            for c in (chunk.field("bytes") if inner else chunk).to_pylist()
        ]
        return contents, labels, names


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str]:
    """As Hugging Face's datasets note them in a file; none where they do not."""
    try:
        return [
            str(name)
            for name in json.loads((metadata or {})[b"huggingface"])["info"]["features"][label][
                "names"
            ]
        ]
    except (KeyError, TypeError, ValueError):
        return []
