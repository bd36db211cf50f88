"""Nine groups of animals out of an ImageNet-1k folder."""

from dataclasses import dataclass
from pathlib import Path

import torch

from fewstep.choice import Natural
from fewstep.data.dataset import Dataset
from fewstep.data.layout import SUFFIXES, left, step_down, without_pictures
from fewstep.data.lazy import of_files
from fewstep.data.pictures import Channels, How, OnBad
from fewstep.data.source import Source, content, located
from fewstep.data.tree import Passed, Tree, passed_over, walk
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


WHAT = "pictures in folders like n02085620 of the nine groups"


@dataclass(frozen=True)
class Imagenet9(Source):
    """A folder whose sub-folders, or those of its training set, have WordNet ids as names
    (n02085620). Others are left out, and counted.
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
    """skip leaves out what cannot be read, up to 1 % of all, each named; skip_all any number; else
    it is an error."""

    @classmethod
    def files_at(cls, path: Path) -> list[Path]:
        return [file for file in walk(path, SUFFIXES).files() if group(file.parent.name)]

    def foreseen(self) -> Space | None:
        depth = 1 if self.channels == "grey" else 3
        return image_space((depth, self.size, self.size), len(GROUPS)) if self.size else None

    def read(self, beside: Path | None = None) -> Dataset:
        path = located(self.path, WHAT)
        tree, passed = walk(path, SUFFIXES), list[Passed]()
        while not any(map(group, tree.folders)) and (inner := step_down(tree, passed)):
            tree = inner
        files: dict[Path, str] = {}
        for name, one in tree.inner.items():
            found = one.loose if isinstance(one, Tree) and group(name) else []
            kept = found[: self.per_folder or None]
            files |= dict.fromkeys(kept, group(name))
            if group(name) and not found:
                raise without_pictures(tree.path, [name])
            reason = "beyond per_folder" if found else "outside the nine groups"
            passed.extend(one for one in left(one, reason) if one[0] not in files)
        if not files:
            raise ValueError(f"no {WHAT} in {path} (found: {content(path)})")
        names = list(GROUPS)
        labels = torch.tensor([names.index(group) for group in files.values()])
        folders = len({file.parent for file in files})
        notes = {
            "files": f"{len(files)} in {folders} folders",
            "class names": ", ".join(GROUPS),
            **passed_over([*passed, *tree.others], path),
        }
        how = How(self.size, self.channels, self.on_bad)
        return of_files(list(files), path, labels, len(GROUPS), how, notes, self.workers, beside)


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
