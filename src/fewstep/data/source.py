"""Data sources: where rows come from, which of them are used, and what was found there."""

from __future__ import annotations

import gzip
import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar, Literal, Self, cast

import numpy as np
import torch
from torch import Tensor

from fewstep.choice import Choice, Natural, Share, replaced
from fewstep.data.dataset import Dataset
from fewstep.data.layout import OTHER_PICTURES
from fewstep.data.splits import check_sets
from fewstep.data.tree import files_below
from fewstep.models.space import Space
from fewstep.text import place

Split = Literal["all", "train", "test"]


@dataclass(frozen=True, kw_only=True)
class Source(Choice, ABC):
    """A data source. Its fields beside these are its own.

    Train and test are chosen by a hash of (split_seed, id), `held_out` of all to test.
    """

    folder: ClassVar[str | None] = "fewstep.data"
    held_out: ClassVar[float] = 0.2
    reads_also: ClassVar[tuple[str, ...]] = ()  # other kinds, of whose files it makes its own
    may_change: ClassVar[tuple[str, ...]] = ("workers",)  # what a resumed run may change
    judge: ClassVar[str | None] = None  # the shipped classifier of such images, where there is one
    measures: ClassVar[tuple[str, ...]] = ()  # of such images alone, beside the usual ones

    split: Split = "train"
    """Train and test are chosen by a hash of each image's place; a fifth of all is test."""
    limit: Natural = 0
    """The first so many images of the split; 0: all."""
    fraction: Share = 1.0
    """A fixed even choice of such a share of the split."""
    split_seed: int = 0
    """Seed of the split and of the choice."""
    flip: bool = False
    """Training mirrors each image with probability 1/2; what is held out never is."""
    workers: Natural = 0
    """Processes that read and decode ahead of the training; they change no bit."""

    def __post_init__(self) -> None:
        # Every kind that reads files calls their place `path`; ~ in front is the home folder.
        path = getattr(self, "path", "")
        if path.startswith("~"):
            object.__setattr__(self, "path", str(place(path)))

    @property
    def whole(self) -> Self:
        """The same data as a reference: what training takes a part of, or mirrors, as it is."""
        return replaced(self, limit=0, fraction=1.0, flip=False)

    @classmethod
    def files_at(cls, path: Path) -> list[Path]:
        """The files of an existing file or folder that this kind reads. Looks at names and first
        bytes only.
        """
        return []

    @classmethod
    def kind_at(cls, path: Path) -> str:
        """The kind for a file or folder: the one that reads the most bytes of it. ValueError where
        none reads any, or what it would not read speaks against it.
        """
        sizes = {}
        for name, kind in cls.kinds().items():
            files = kind.files_at(path)
            sizes[name] = bytes_of(files), len(files)  # empty metadata count, too
        if path.is_file() and not path.stat().st_size:
            raise ValueError(f"{path} is empty")
        if not any(size for size, _ in sizes.values()):
            found = unread_pictures(path) or f"found: {content(path)}"
            kinds = [n for n, kind in cls.kinds().items() if "path" in kind.__dataclass_fields__]
            raise ValueError(f"no data in {path} ({found}) for {', '.join(kinds)}")
        most = max(sizes, key=lambda name: sizes[name])
        cls.kinds()[most].check_at(path)
        return most

    @classmethod
    def check_at(cls, path: Path) -> None:
        """ValueError where something in a folder says that another kind may be meant."""

    def found(self, path: str, what: str) -> list[Path]:
        """`files_at` of the path that the user gave. FileNotFoundError or ValueError where there
        are none.
        """
        place = located(path, what)
        if not (files := self.files_at(place)):
            raise ValueError(f"no {what} in {path} (found: {content(place)}){self._other(place)}")
        check_sets(files, place)
        return files

    def _other(self, path: Path) -> str:
        """Which kind reads what lies there, in place of this one."""
        try:
            return f"; data={Source.kind_at(path)} reads that"
        except ValueError:
            return ""

    def foreseen(self) -> Space | None:
        """What its rows will be, as the options tell it; None where only reading tells."""
        return None

    @abstractmethod
    def read(self, beside: Path | None = None) -> Dataset:
        """Everything that the source holds. FileNotFoundError or ValueError that name the file.

        beside: a folder where an index may be kept, so that the next start need not look at every
        file again; it is only ever a saving of time.
        """

    def dataset(self, split: Split | None = None, empty: bool = False) -> Dataset:
        """The images of the split, after limit and fraction. ValueError where nothing is left,
        unless `empty`.
        """
        return self.choose(self.read(), split, empty)

    def choose(
        self, everything: Dataset, split: Split | None = None, empty: bool = False
    ) -> Dataset:
        """What `dataset` gives, of images that were read already."""
        split = self.split if split is None else split
        place = self._hash(everything.ids)
        keep = torch.ones(len(everything), dtype=torch.bool)
        if split != "all":
            keep = (place < self.held_out) == (split == "test")
        index = keep.nonzero()[:, 0]
        if self.fraction < 1:
            # Another hash than the split's, so that a fraction of the training split is an even
            # choice of it.
            index = index[self._hash(everything.ids[index], "fraction") < self.fraction]
        if self.limit:
            index = index[: self.limit]
        if not len(index) and not empty:
            after = f"no images left of {len(everything)} after split={split}"
            raise ValueError(f"{after}, fraction={self.fraction}: {self._to_keep_some(keep)}")
        chosen = everything.select(index)
        chosen.flip = self.flip and split != "test"
        return chosen

    def _to_keep_some(self, keep: Tensor) -> str:
        """What to do where nothing is left of the images that the split keeps."""
        if not len(keep):
            return "the source is empty"
        if bool(keep.any()):
            return "a larger fraction (in a run data.fraction) keeps some"
        return "split=all (in a run data.split=all) takes all, or another split_seed"

    def _hash(self, ids: Tensor, salt: str = "split") -> Tensor:
        """A number in [0, 1) for each id, the same on every machine (SplitMix64 of the id and the
        seed).
        """
        key = int.from_bytes(
            hashlib.blake2b(f"{salt}|{self.split_seed}".encode(), digest_size=8).digest(), "little"
        )
        z = ids.numpy().astype(np.uint64) + np.uint64(key)
        with np.errstate(over="ignore"):
            z = z * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return torch.from_numpy((z ^ (z >> np.uint64(31))).astype(np.float64) / 2.0**64)


def bytes_of(files: Sequence[Path]) -> int:
    """How much all of them hold."""
    return sum(file.stat().st_size for file in files)


def located(path: str, what: str) -> Path:
    """The path that the user gave. FileNotFoundError or ValueError where nothing is there."""
    if not path:
        raise ValueError(f"no data: give data.path=DIR, a folder with {what}")
    if not Path(path).exists():
        raise FileNotFoundError(f"no data at {path}: expected a folder or a file with {what}")
    return Path(path)


def unpacked(file: Path) -> IO[bytes]:
    """A file opened for reading, through gzip where its content is packed, whatever its name."""
    with file.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(file, "rb")) if packed else file.open("rb")


def unread_pictures(path: Path) -> str:
    """How many pictures of other formats lie there, and which are read; "" where there are none."""
    kinds = Counter(file.suffix.lower() for file in files_below(path))
    if told := [f"{kinds[kind]} {kind}" for kind in sorted(OTHER_PICTURES & set(kinds))]:
        return f"found pictures that are not read: {', '.join(told)}; PNG, JPEG and WebP are"
    return ""


def content(path: Path) -> str:
    """The first names of what lies there, for messages."""
    names = sorted(p.name for p in path.iterdir())[:5] if path.is_dir() else [path.name]
    return ", ".join(names) or "nothing"
