"""IDX files: MNIST and its kin (Fashion-MNIST, KMNIST, EMNIST), plain or gzipped."""

import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fewstep.choice import Count
from fewstep.data.bounds import check_bytes, memory_for
from fewstep.data.dataset import Dataset, held_images
from fewstep.data.labels import check_labels
from fewstep.data.source import Source, unpacked
from fewstep.models.space import Space, image_space

LABELS, IMAGES, COLOURS = 1, 3, 4  # numbers of dimensions, as the magic number has them


@dataclass(frozen=True)
class Idx(Source):
    """A folder or an images file. Whatever pair of images and labels is found is used and named;
    where there are several, the one with the most images. Both files of a pair share their name but
    for "images"/"labels" and the number of dimensions.
    """

    path: str = ""
    """The folder or file."""
    classes: Count = 10
    """Labels are 0 … classes - 1."""

    @classmethod
    def files_at(cls, path: Path) -> list[Path]:
        folder = path if path.is_dir() else path.parent
        headers = {file: header for file in sorted(folder.iterdir()) if (header := _header(file))}
        pairs = []
        for file, sizes in headers.items():
            if len(sizes) in (IMAGES, COLOURS) and path in (folder, file):
                labels = [
                    f for f, s in headers.items() if len(s) == LABELS and _stem(f) == _stem(file)
                ]
                pairs.append((sizes[0], [file, *labels[:1]]))
        return max(pairs, key=lambda pair: pair[0])[1] if pairs else []

    def foreseen(self) -> Space:
        """As MNIST and its kin are."""
        return image_space((1, 28, 28), self.classes)

    def read(self, beside: Path | None = None) -> Dataset:
        file, *labels = self.found(self.path, "IDX images")
        return self._dataset(file, labels[0] if labels else None)

    def _dataset(self, file: Path, labels_file: Path | None) -> Dataset:
        images = _read(file)
        images = images[:, None] if images.ndim == IMAGES else images.transpose(0, 3, 1, 2)
        labels, notes = None, {"images file": str(file), "labels file": "none"}
        if labels_file is not None:
            notes["labels file"] = str(labels_file)
            labels = torch.from_numpy(_read(labels_file).astype(np.int64))
            if len(labels) != len(images):
                raise ValueError(
                    f"{labels_file} has {len(labels)} labels for the {len(images)} images of {file}"
                )
            check_labels(labels, self.classes, f"{labels_file} (data.classes={self.classes})")
        pixels = torch.from_numpy(np.ascontiguousarray(images))
        return held_images(pixels, labels, self.classes, torch.arange(len(pixels)), notes)


def _stem(file: Path) -> str:
    """What the names of images and labels have in common: train-images-idx3-ubyte.gz -> train."""
    name = file.name.removesuffix(".gz").lower()
    for word in ("images", "labels", "idx1", "idx3", "idx4", "ubyte"):
        name = name.replace(word, "")
    return name.strip("-_. ")


def _header(file: Path) -> tuple[int, ...] | None:
    """The sizes that an IDX file of bytes announces; None for any other file."""
    if not file.is_file():
        return None
    try:
        with unpacked(file) as stream:
            magic = stream.read(4)
            if (
                len(magic) < 4
                or magic[:3] != b"\0\0\x08"
                or magic[3] not in (LABELS, IMAGES, COLOURS)
            ):
                return None
            sizes = stream.read(4 * magic[3])
    except (OSError, EOFError, zlib.error):
        return None
    return struct.unpack(f">{magic[3]}I", sizes) if len(sizes) == 4 * magic[3] else None


def _read(file: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    sizes = _header(file)
    assert sizes is not None
    wanted, content = math.prod(sizes), bytearray()
    if 0 in sizes[1:]:
        raise ValueError(f"{file}: its header announces images of {'×'.join(map(str, sizes[1:]))}")
    check_bytes(file, wanted)
    try:
        with memory_for(file), unpacked(file) as stream:
            stream.read(4 + 4 * len(sizes))
            # In pieces: a forged header must not reserve more memory than the file has bytes.
            while len(content) <= wanted and (
                part := stream.read(min(1 << 24, wanted + 1 - len(content)))
            ):
                content += part
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} is damaged or cut off: {error}") from None
    if len(content) != wanted:
        raise ValueError(
            f"{file} is cut off or too long: its header announces {wanted} bytes, it has "
            f"{len(content)}"
        )
    return np.frombuffer(content, np.uint8).reshape(sizes)
