"""Folders of pictures: PNG, JPEG or WebP."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fewstep.choice import Natural
from fewstep.data.dataset import Dataset
from fewstep.data.lazy import of_files
from fewstep.data.pictures import Channels, How, OnBad
from fewstep.data.source import TESTS, Source, files_below

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
DEPTH = 10
MOST_CLASSES = 10_000


@dataclass(frozen=True)
class Folder(Source):
    """A folder of pictures, or one picture. A class is a sub-folder, or what stands before the
    first `_` of all names; there are none where only one would be found. Whole numbers are classes
    themselves, other names count in order. Where the sub-folders are train, test or val, the
    training set is used.
    """

    path: str = ""
    """The folder or file."""
    size: Natural = 0
    """Short side of a picture in pixels, its middle square is kept; 0 keeps sizes, which must be
    equal."""
    channels: Channels = "auto"
    """1 channel for grey, 3 for rgb; auto takes 1 if all pictures are grey."""
    on_bad: OnBad = "error"
    """skip leaves out what cannot be read, up to 1 % of all, each named; else it is an error."""

    @classmethod
    def files_at(cls, path: Path) -> list[Path]:
        files = [file for file in files_below(path, DEPTH) if file.suffix.lower() in SUFFIXES]
        root = _root(path, files)
        return [file for file in files if root in (file, *file.parents)]

    def read(self, beside: Path | None = None) -> Dataset:
        files = self.found(self.path, "pictures (PNG, JPEG or WebP)")
        root = _root(Path(self.path), files)
        words = _words([file.relative_to(root) for file in files])
        numbers = {word: int(word) for word in words if word.isdecimal() and str(int(word)) == word}
        if len(numbers) < len(set(words)) or max(numbers.values(), default=0) >= MOST_CLASSES:
            numbers = {word: place for place, word in enumerate(sorted(set(words)))}
        labels = torch.tensor([numbers[word] for word in words]) if words else None
        names = ", ".join(sorted(numbers, key=lambda word: numbers[word])) or "none"
        notes = {"files": f"{len(files)} below {root}", "class names": names}
        classes = max(numbers.values(), default=-1) + 1
        how = How(self.size, self.channels, self.on_bad)
        return of_files(files, root, labels, classes, how, notes, self.workers, beside)


def _root(path: Path, files: Sequence[Path]) -> Path:
    """The folder of the classes: that of a split, where there is nothing beside such."""
    tops = {file.relative_to(path).parts[0] for file in files if file != path}
    return (
        path / ("train" if "train" in tops else min(tops))
        if tops and tops <= {"train", *TESTS}
        else path
    )


def _words(names: Sequence[Path]) -> list[str]:
    """The class of each file; none at all where the names tell of none."""
    if all(len(name.parts) > 1 for name in names):
        words = [name.parts[0] for name in names]
        return words if len(set(words)) > 1 else []
    words = [
        name.stem.partition("_")[0] for name in names if len(name.parts) == 1 and "_" in name.stem
    ]
    return words if len(words) == len(names) and 1 < len(set(words)) < len(words) else []
