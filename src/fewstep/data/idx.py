"""IDX files: MNIST and its kin (Fashion-MNIST, KMNIST, EMNIST), plain or gzipped."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fewstep.choice import Count
from fewstep.data.dataset import Dataset, held_images
from fewstep.data.idx_file import COLOURS, IMAGES, LABELS, Sizes, header, read_idx
from fewstep.data.labels import UNLABELLED, check_labels, unlabelled
from fewstep.data.source import Source, located
from fewstep.data.splits import OTHER, TRAINING, set_of
from fewstep.data.tree import Passed, passed_over, walk
from fewstep.models.space import Space, image_space

WHAT = "IDX images"
TESTS = 2  # the rank of test sets


class Found(NamedTuple):
    """A file that is IDX, or is called so. told: its sizes, or why it cannot be read. stem: what
    the names of images and their labels have in common.
    """

    file: Path
    told: Sizes | str
    role: str
    stem: tuple[str, ...]

    @property
    def rank(self) -> tuple[int, float]:
        """Training sets first, tests last; then the most images. What cannot be read counts as
        many, so that nothing else takes its place.
        """
        spoken = set_of(self.file.name)
        kind = None if spoken is None or spoken.kind == OTHER else spoken.kind
        many = math.inf if isinstance(self.told, str) else self.told[0]
        return 0 if kind == TRAINING else 1 if kind is None else TESTS, -many


@dataclass(frozen=True)
class Idx(Source):
    """A folder or an images file. Both files of a pair share their name but for "images"/"labels"
    and the number of dimensions; a file that belongs to the pair by its name and cannot be read is
    an error. Of several pairs a training set is used before others, then the one with the most
    images; what was used, and what was not, is named.
    """

    path: str = ""
    """The folder or file."""
    classes: Count = 10
    """Labels are 0 … classes - 1."""
    label: Literal["auto", "none"] = "auto"
    """auto: the labels that belong to the images by their name; none: without."""

    @classmethod
    def files_at(cls, path: Path) -> list[Path]:
        found = _found(path if path.is_dir() else path.parent)
        if not (images := _images(found, path)):
            return []
        labels = _labels(found, images[0])
        return [images[0].file, *(one.file for one in labels[:1])]

    def foreseen(self) -> Space:
        """As MNIST and its kin are."""
        return image_space((1, 28, 28), self.classes)

    def read(self, beside: Path | None = None) -> Dataset:
        taken = self.found(self.path, WHAT)
        path = located(self.path, WHAT)
        folder = taken[0].parent
        found = _found(folder)
        first, *others = _images(found, path)
        for other in others:
            if other.rank == first.rank or other.rank[0] == first.rank[0] == TESTS:
                raise ValueError(
                    f"{first.file} and {other.file.name} are alike, and neither is the training "
                    "set for sure: data.path= names the file of one"
                )
        pixels = _pixels(first.file)
        labels, notes = None, {"images file": str(first.file), "labels file": "none"}
        if self.label == "auto":
            _check_labels(found, first)
            if len(taken) > 1:
                notes["labels file"] = str(taken[1])
                labels = self._labels(taken[1], first.file, len(pixels))
                if labels is None:
                    notes["labels file"] += f": {UNLABELLED}"
        notes |= passed_over(_left(folder, found, taken), folder)
        return held_images(pixels, labels, self.classes, torch.arange(len(pixels)), notes)

    def _labels(self, file: Path, images: Path, count: int) -> Tensor | None:
        """One for each image; None where all are -1. ValueError for any others."""
        labels = torch.from_numpy(read_idx(file, (LABELS,)).astype(np.int64))
        if len(labels) != count:
            raise ValueError(f"{file} has {len(labels)} labels for the {count} images of {images}")
        if unlabelled(labels, self.classes):
            return None
        check_labels(labels, self.classes, f"{file} (data.classes={self.classes})")
        return labels


def _pixels(file: Path) -> Tensor:
    """(n, channels, height, width) uint8."""
    images = read_idx(file, (IMAGES, COLOURS))
    images = images[:, None] if images.ndim == IMAGES else images.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(images))


def _found(folder: Path) -> list[Found]:
    """The files of a folder that are IDX, are called so, or belong to one by their names. Of those
    with the same role and stem, such that can be read and have short names go first.
    """
    looked = []
    for file in sorted(folder.iterdir()):
        if not file.name.startswith("."):
            told = header(file)
            looked.append(Found(file, told, _role(file, told), _stem(file)))
    known = {one.stem for one in looked if not isinstance(one.told, str)}
    found = []
    for one in looked:
        named = re.search(r"idx\d|ubyte", one.file.name.lower())
        paired = one.role and one.stem in known and not one.file.is_dir()
        if not isinstance(one.told, str) or named or paired:
            found.append(one)
    return sorted(found, key=lambda one: (isinstance(one.told, str), len(one.file.name)))


def _role(file: Path, told: Sizes | str) -> str:
    """What a file is by its name, else by its dimensions; "" where neither tells."""
    name = file.name.lower()
    if said := re.search(r"label|image|idx1|idx\d", name):
        return "labels" if said[0] in ("label", "idx1") else "images"
    if isinstance(told, str):
        return ""
    return "labels" if len(told) == LABELS else "images"


def _stem(file: Path) -> tuple[str, ...]:
    """The words that images and labels have in common: train-images-idx3-ubyte.gz -> (train,)."""
    name = re.sub(r"(ubyte).*", r"\1", file.name.lower())
    name = re.sub(r"\.gz$|images?|labels?|idx\d|ubyte|\bint\b", " ", name)
    return tuple(re.findall(r"[a-z0-9]+", name))


def _images(found: Sequence[Found], path: Path) -> list[Found]:
    """The image files that may be meant, the best first; one for each stem."""
    best: dict[tuple[str, ...], Found] = {}
    for one in found:
        if one.role == "images" and (path == one.file or path.is_dir()):
            best.setdefault(one.stem, one)
    return sorted(best.values(), key=lambda one: one.rank)


def _labels(found: Sequence[Found], images: Found) -> list[Found]:
    return [one for one in found if one.role == "labels" and one.stem == images.stem]


def _check_labels(found: Sequence[Found], images: Found) -> None:
    """ValueError where images have no labels by name, but others have, or labels may be theirs."""
    if _labels(found, images):
        return
    stems = {one.stem for one in found if one.role == "images"}
    kind = set_of(images.file.name)
    for one in found:
        if one.role != "labels":
            continue
        if one.stem in stems:
            name = re.sub(r"idx\d", "idx1", images.file.name.replace("image", "label"))
            raise ValueError(
                f"{images.file} has no labels, the images beside it have ({one.file.name}): "
                f"expected {name}; label=none reads without"
            )
        other = set_of(one.file.name)
        contrary = kind and other and kind.kind != other.kind
        if not contrary and one.told == images.told[:1]:
            raise ValueError(
                f"{one.file} has as many labels as {images.file.name} has images, but another "
                "name: give both the same, or label=none"
            )


def _left(folder: Path, found: Sequence[Found], taken: Sequence[Path]) -> list[Passed]:
    """What lies in the folder and was not used."""
    why = {one.file: one.told if isinstance(one.told, str) else "not used" for one in found}
    tree = walk(folder, (), 1)
    passed = [(path, why.get(path, reason)) for path, reason in tree.passed()]
    return [one for one in passed if one[0] not in taken]
