"""What a data source holds, seen quickly: how many pictures, of which size, for recipes that fit
themselves to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from fewstep.choice import replaced
from fewstep.data.folder import Folder
from fewstep.data.layout import SUFFIXES
from fewstep.data.source import Source, located
from fewstep.data.tree import walk

LOOKED_AT = 200  # pictures of a folder, spread over all


@dataclass(frozen=True)
class Sight:
    """Pictures of a source.

    count: of the whole source. side: the short side, of different ones the middle one. square:
    whether all that were looked at are squares of this side. channels: 1 where all are grey.
    """

    source: Source
    count: int
    side: int
    square: bool
    channels: int = 3


def sight_of(source: Source) -> Sight:
    """What the source holds. ValueError or FileNotFoundError as its `read`."""
    if isinstance(source, Folder):
        return _of_folder(source)
    equal = True
    try:
        dataset = source.dataset("all")
    except ValueError:
        if getattr(source, "size", None) != 0:
            raise
        dataset = replaced(source, size=64).dataset("all")  # of sizes that differ
        equal = False
    channels, height, width = dataset.shape
    square = height == width and equal
    return Sight(source, len(dataset), min(height, width), square, channels)


def _of_folder(source: Folder) -> Sight:
    """Of a folder, in which only some pictures are opened, and no more than their headers."""
    files = walk(located(source.path, "pictures"), SUFFIXES).files()
    step = max(1, len(files) // LOOKED_AT)
    sizes, grey = [], True
    for file in files[::step]:
        try:
            with Image.open(file) as picture:
                sizes.append(picture.size)
                grey &= picture.mode in ("1", "L", "I;16")
        except OSError:  # what cannot be read is named when all is
            continue
    if not sizes:
        found = source.dataset("all")  # which says why
        sizes = [(found.shape[2], found.shape[1])]
    short = sorted(min(size) for size in sizes)
    side = short[len(short) // 2]
    square = all(size == (side, side) for size in sizes)
    return Sight(source, len(files), side, square, 1 if grey else 3)
