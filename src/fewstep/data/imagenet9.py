"""Nine groups of animals out of an ImageNet-1k folder."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from fewstep.choice import Natural
from fewstep.data.dataset import Dataset
from fewstep.data.folder import SUFFIXES
from fewstep.data.lazy import of_files
from fewstep.data.pictures import Channels, How, OnBad
from fewstep.data.source import Source, files_below
from fewstep.models.space import Space, image_space

# First and last WordNet id of each group. Sorted by id, ImageNet-1k's classes in between are
# exactly the group's (their numbers in brackets); the larger ImageNet has others there as well.
GROUPS = {
    "dog": ("n02085620", "n02113978"),  # 151-268
    "cat": ("n02123045", "n02124075"),  # 281-285
    "frog": ("n01641577", "n01644900"),  # 30-32
    "turtle": ("n01664065", "n01669191"),  # 33-37
    "bird": ("n01795545", "n01860187"),  # 80-100
    "monkey": ("n02480495", "n02494079"),  # 365-382
    "fish": ("n02514041", "n02655020"),  # 389-397
    "crab": ("n01978287", "n01981276"),  # 118-121
    "insect": ("n02165105", "n02268443"),  # 300-319
}


@dataclass(frozen=True)
class Imagenet9(Source):
    """A folder whose sub-folders, or those of its `train`, have WordNet ids as names (n02085620).
    Others are left out.
    """

    path: str = ""
    """The folder or file."""
    size: Natural = 64
    """Short side of a picture in pixels, its middle square is kept; 0 keeps sizes, which must be
    equal."""
    per_folder: Natural = 0
    """The first so many pictures of each sub-folder; 0: all."""
    channels: Channels = "rgb"
    """1 channel for grey, 3 for rgb; auto takes 1 if all pictures are grey."""
    on_bad: OnBad = "error"
    """skip leaves out what cannot be read, up to 1 % of all, each named; else it is an error."""

    @classmethod
    def files_at(cls, path: Path) -> list[Path]:
        top = path / "train" if (path / "train").is_dir() else path
        files = files_below(top, 2) if top.is_dir() else []
        return [
            f
            for f in files
            if f.suffix.lower() in SUFFIXES and group(f.parent.name) and f.parent.parent == top
        ]

    def foreseen(self) -> Space | None:
        depth = 1 if self.channels == "grey" else 3
        return image_space((depth, self.size, self.size), len(GROUPS)) if self.size else None

    def read(self, beside: Path | None = None) -> Dataset:
        seen, files = Counter[str](), []
        for file in self.found(self.path, "pictures in folders like n02085620 of the nine groups"):
            seen[file.parent.name] += 1
            if not self.per_folder or seen[file.parent.name] <= self.per_folder:
                files.append(file)
        names = list(GROUPS)
        labels = torch.tensor([names.index(group(file.parent.name)) for file in files])
        notes = {
            "files": f"{len(files)} in {len(seen)} folders",
            "class names": ", ".join(GROUPS),
        }
        how = How(self.size, self.channels, self.on_bad)
        root = Path(self.path)
        return of_files(files, root, labels, len(GROUPS), how, notes, self.workers, beside)


def group(wnid: str) -> str:
    """The group of a WordNet id, "" for none."""
    return next(
        (
            name
            for name, (first, last) in GROUPS.items()
            if first <= wnid <= last and len(wnid) == 9
        ),
        "",
    )
