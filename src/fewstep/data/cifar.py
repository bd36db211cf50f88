"""CIFAR-10 and CIFAR-100 as they are handed out: Parquet, the binary and the python version, packed
or not.
"""

import io
import pickle
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fewstep.data.bounds import DAMAGED, memory_for
from fewstep.data.dataset import Dataset, held_images
from fewstep.data.labels import UNLABELLED, check_labels, unlabelled
from fewstep.data.pickles import check_pickle
from fewstep.data.pictures import OnBad, Pixels
from fewstep.data.source import Source, unpacked
from fewstep.data.splits import check_sets, of_training
from fewstep.data.table import Table
from fewstep.data.tree import files_below, left_beside
from fewstep.models.space import Space, image_space

BATCH = re.compile(r"(data_batch_\d+|test_batch|train|test)(\.bin)?")
ARCHIVE = re.compile(r"cifar.*\.(tar|tar\.gz|tgz)")
SHAPE, VALUES = (3, 32, 32), 3072
CLASSES = {"labels": 10, "fine_labels": 100, "coarse_labels": 20}
MOST_BYTES = 1 << 29  # an archive unpacks to 186 MB
MOST_OPCODES = 2_000_000  # a pickle has 5 for each image


@dataclass(frozen=True)
class Cifar(Source):
    """A file, or a folder with files in it or one level below; those of the training set where
    there are others too, of several versions the largest.
    """

    reads_also: ClassVar[tuple[str, ...]] = ("table",)

    path: str = ""
    """The folder or file."""
    labels: Literal["fine", "coarse"] = "fine"
    """Of CIFAR-100: the 100 fine classes or the 20 coarse ones."""
    on_bad: OnBad = "error"
    """skip leaves out what cannot be read in Parquet, up to 1 % of all, each named; skip_all any
    number; else it is an error."""

    @classmethod
    def files_at(cls, path: Path) -> list[Path]:
        """All but Parquet: its names do not tell what it holds."""
        files = [
            f for f in files_below(path, 2) if ARCHIVE.fullmatch(f.name) or BATCH.fullmatch(f.name)
        ]
        versions: dict[tuple[object, ...], list[Path]] = {}
        for file in of_training(files, path):
            version = (
                file.parent,
                file.suffix,
                _is_hundred(file),
                ARCHIVE.fullmatch(file.name) and file.name,
            )
            versions.setdefault(version, []).append(file)
        return max(
            versions.values(), key=lambda files: sum(f.stat().st_size for f in files), default=[]
        )

    def foreseen(self) -> Space:
        """As CIFAR-10 is."""
        return image_space(SHAPE, CLASSES["labels"])

    def read(self, beside: Path | None = None) -> Dataset:
        files = self.files_at(Path(self.path)) if self.path else []
        if not files:
            label = "coarse_label" if self.labels == "coarse" else "auto"
            tables = Table(
                path=self.path,
                label=label,
                channels="rgb",
                workers=self.workers,
                on_bad=self.on_bad,
            )
            found = tables.found(self.path, "CIFAR (Parquet, *.bin, data_batch_*, *.tar.gz)")
            return tables.read_files(found, memory=None)
        self._check_training(files)
        batches = {name: content for file in files for name, content in _contents(file).items()}
        images, labels, classes = zip(
            *(self._batch(name, content) for name, content in batches.items())
        )
        pixels = torch.from_numpy(np.concatenate(images).reshape(-1, *SHAPE))
        notes = {"files": ", ".join(map(str, batches))}
        notes |= left_beside(Path(self.path), files)
        if unlabelled(torch.cat(labels), max(classes)):
            notes["labels"] = UNLABELLED
            return held_images(pixels, None, 0, notes=notes)
        for file, numbers in zip(batches, labels):
            check_labels(numbers, max(classes), str(file))
        return held_images(pixels, torch.cat(labels), max(classes), notes=notes)

    def _check_training(self, files: Sequence[Path]) -> None:
        """ValueError where test batches would take the place of others that cannot be read."""
        check_sets(files, Path(self.path))
        if all(file.stem == "test_batch" for file in files) and Path(self.path).is_dir():
            for other in files_below(Path(self.path)):
                if other.name.startswith("data_batch"):
                    raise ValueError(f"{other} cannot be read beside {files[0]}")

    def _batch(self, file: Path, content: bytes) -> tuple[Pixels, Tensor, int]:
        """Pixels (n, 3072), the labels that were asked for, and the number of their classes."""
        images, labels = (_binary if file.suffix == ".bin" else _pickled)(file, content)
        kind = "labels" if "labels" in labels and self.labels == "fine" else f"{self.labels}_labels"
        if kind not in labels:
            raise ValueError(f"{file} has no {kind}, only {', '.join(labels) or 'none'}")
        if images.shape != (len(labels[kind]), VALUES):
            raise ValueError(
                f"{file} is no CIFAR: {len(labels[kind])} labels, pixels of shape {images.shape}"
            )
        return images, labels[kind], CLASSES[kind]


def _is_hundred(file: Path) -> bool:
    """CIFAR-100 has one file each for training and test."""
    return file.stem in ("train", "test")


def _contents(file: Path) -> dict[Path, bytes]:
    """The batches in a file. Those in an archive never become files, and its links are passed
    over.
    """
    buffer = io.BytesIO()
    try:
        with memory_for(file), unpacked(file) as stream:
            while part := stream.read(1 << 24):
                buffer.write(part)
                if buffer.tell() > MOST_BYTES:
                    raise ValueError(f"it unpacks to more than {MOST_BYTES >> 20} MB")
        content, end, found = buffer.getvalue(), 0, {}
        if not ARCHIVE.fullmatch(file.name):
            return {file: content}
        buffer.seek(0)
        with tarfile.open(fileobj=buffer, mode="r:") as archive:
            for member in archive:
                end = member.offset_data + member.size
                if end > len(content):  # to which tarfile would go
                    raise ValueError("its end is missing")
                if member.isreg() and BATCH.fullmatch(name := Path(member.name).name):
                    found[Path(name)] = content[member.offset_data : end]
        end = -(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if content[end : end + tarfile.BLOCKSIZE] != bytes(tarfile.BLOCKSIZE):
            raise ValueError(
                "its end is missing"
            )  # tarfile takes what stops at a header for a whole archive
    except (*DAMAGED, ValueError) as error:
        raise ValueError(f"{file} is damaged or cut off: {error}") from None
    if not found:
        raise ValueError(f"{file} holds no CIFAR")
    return {file / name: found[name] for name in of_training(sorted(found), Path())}


def _binary(file: Path, content: bytes) -> tuple[Pixels, dict[str, Tensor]]:
    kinds = ("coarse_labels", "fine_labels") if _is_hundred(file) else ("labels",)
    record = len(kinds) + VALUES
    if not content or len(content) % record:
        raise ValueError(
            f"{file} is cut off or empty: {len(content)} bytes are no multiple of {record}"
        )
    table = np.frombuffer(content, np.uint8).reshape(-1, record)
    return table[:, len(kinds) :], {
        kind: torch.from_numpy(table[:, i].astype(np.int64)) for i, kind in enumerate(kinds)
    }


class _Inert:
    """Stands for everything that a pickle names. It keeps what it is given: nothing that a pickle
    asks for is run.
    """

    state: Any = None

    def __init__(self, *arguments: Any):
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    allowed = frozenset(
        {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
        | {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise ValueError(
                f"it asks for {f'{module}.{name}'[:80]!r}, which CIFAR does not need: refused"
            )
        return _Inert


def _pickled(file: Path, content: bytes) -> tuple[Pixels, dict[str, Tensor]]:
    try:
        check_pickle(content, MOST_OPCODES)
        loaded = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        table = {_raw(key).decode(): value for key, value in loaded.items()}
        _, shape, _, fortran, values = table["data"].state
        images = np.frombuffer(_raw(values), np.uint8).reshape(shape, order="F" if fortran else "C")
        labels = {kind: np.fromiter(table[kind], np.int64) for kind in CLASSES if kind in table}
        return images, {kind: torch.from_numpy(numbers) for kind, numbers in labels.items()}
    except Exception as error:  # what is forged can fail anywhere
        raise ValueError(f"{file} is damaged or no CIFAR: {error}") from None


def _raw(value: Any) -> bytes:
    """The bytes of a string as Python 2 wrote it, or 3 in either of its ways."""
    value = value.arguments[0] if isinstance(value, _Inert) else value
    return value.encode("latin1") if isinstance(value, str) else value
