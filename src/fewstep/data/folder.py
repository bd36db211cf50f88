"""Folders of pictures: PNG, JPEG or WebP."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fewstep.choice import Natural
from fewstep.data.captions import beside as captions_beside
from fewstep.data.dataset import Dataset
from fewstep.data.labels import listed, numbered
from fewstep.data.layout import (
    SUFFIXES,
    by_folder,
    by_name,
    check_classes,
    class_level,
    without_pictures,
)
from fewstep.data.lazy import of_files
from fewstep.data.picture_tables import check_unheard
from fewstep.data.pictures import Channels, How, OnBad
from fewstep.data.source import Source, content, located, unread_pictures
from fewstep.data.tree import Passed, Tree, files_below, passed_over, walk
from fewstep.models.space import Space, image_space

WHAT = "pictures (PNG, JPEG or WebP)"


@dataclass(frozen=True)
class Folder(Source):
    """A folder of pictures, or one picture, whose captions may stand in text files beside them. A
    class is a sub-folder, or what stands before the
    first `_` of all names; there are none where only one would be found. Whole numbers are classes
    themselves, other names count in order. Sub-folders, or names, that speak of sets (train, Test,
    val2017, dev) are never classes: the training set is used. What else lies there is counted.
    """

    path: str = ""
    """The folder or file."""
    label: Literal["auto", "folder", "none"] = "auto"
    """auto finds classes and sets by their names, and is an error in doubt; folder makes every
    sub-folder a class, whatever its name; none reads without classes."""
    caption: Literal["auto", "none"] = "auto"
    """auto reads NAME.txt or NAME.caption beside NAME.png, a caption a line; none reads without."""
    size: Natural = 0
    """Short side of a picture in pixels, its middle square is kept; 0 keeps sizes, which must be
    equal."""
    channels: Channels = "auto"
    """1 channel for grey, 3 for rgb; auto takes 1 if all pictures are grey."""
    on_bad: OnBad = "error"
    """skip leaves out what cannot be read, up to 1 % of all, each named; skip_all any number; else
    it is an error."""

    @classmethod
    def files_at(cls, path: Path) -> list[Path]:
        return walk(path, SUFFIXES).files()

    @classmethod
    def check_at(cls, path: Path) -> None:
        check_unheard(files_below(path))

    def foreseen(self) -> Space | None:
        """Where size, channels and that there are no classes is said."""
        shape = How(self.size, self.channels).shape
        return image_space(shape) if shape and self.label == "none" else None

    def read(self, beside: Path | None = None) -> Dataset:
        path = located(self.path, WHAT)
        passed: list[Passed] = []
        root, words = self._classes(walk(path, SUFFIXES), passed)
        files = list(words)
        if not files:
            told = unread_pictures(root.path) or f"found: {content(root.path)}"
            raise ValueError(f"no {WHAT} in {root.path} ({told})")
        numbers, classes = numbered([word for word in words.values() if word])
        labels = torch.tensor([numbers[word] for word in words.values()]) if numbers else None
        others = root.passed()
        captions, texts = captions_beside(files, others if self.caption == "auto" else [])
        passed.extend(one for one in others if one[0] not in texts)
        notes = {
            "files": f"{len(files)} below {root.path}",
            "class names": listed(list(numbers)) or "none",
            **passed_over(passed, path),
        }
        how = How(self.size, self.channels, self.on_bad)
        found = of_files(
            files, root.path, labels, classes, how, notes, self.workers, beside, captions
        )
        if found.labels is not None:
            there = set(found.labels.unique().tolist())
            if gone := [name for name, number in numbers.items() if number not in there]:
                raise without_pictures(root.path, gone)
        return found

    def _classes(self, tree: Tree, passed: list[Passed]) -> tuple[Tree, dict[Path, str]]:
        """The folder of the classes, and its pictures with their classes; "" for none."""
        if self.label == "folder":
            passed.extend((file, "beside the class folders") for file in tree.loose)
            tree = Tree(tree.path, dict(tree.folders), tree.others)
            check_classes(tree)
            return tree, by_folder(tree)
        tree = class_level(tree, passed, self.label != "none")
        if self.label == "auto":
            check_classes(tree)
        files = tree.files()
        words = by_folder(tree) if not tree.loose else dict.fromkeys(files, "")
        if len(tree.loose) == len(files):
            words = by_name(files, passed, self.label == "auto")
        if self.label == "none" or len(set(words.values())) < 2:
            return tree, dict.fromkeys(words, "")
        return tree, words
