"""Data that are handed over in Python: arrays, or the items of a dataset of PyTorch's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fewstep.data.dataset import Dataset, Held, held_images
from fewstep.data.labels import check_ids, check_labels
from fewstep.data.source import Source

Channels = Literal["auto", "first", "last"]
COLOURS = (1, 3)
_HELD: dict[str, Held] = {}
"""Rows that were handed over to this process, by their fingerprint."""


@dataclass(frozen=True)
class Given(Source):
    """Rows that `fewstep.from_arrays` or `fewstep.from_dataset` took over in Python. A run file
    notes their fingerprint; whoever repeats it hands them over again before.
    """

    rows: str = ""
    """The fingerprint of all rows."""

    def read(self, beside: Path | None = None) -> Dataset:
        if self.rows not in _HELD:
            raise ValueError(
                "data=given are rows that were handed over in Python: hand them over again "
                "(fewstep.from_arrays, fewstep.from_dataset), or keep them as files "
                "(data=folder, data=npz)"
            )
        return _HELD[self.rows]


def from_arrays(
    images: Any,
    labels: Any = None,
    captions: Sequence[str] | None = None,
    *,
    channels: Channels = "auto",
    classes: int | None = None,
    **options: Any,
) -> Given:
    """Data for a run, of arrays (numpy, PyTorch) in memory.

    images: (n, height, width), (n, height, width, channels) or (n, channels, height, width); bytes,
    or numbers in [0, 1]. labels: (n,) whole numbers from 0 on. captions: a text for each image.
    channels: where they stand, first or last, if the shape does not tell. classes: how many, if
    not all are among the labels. options: those of all sources (split, flip, limit …).

    Raises ValueError, in one line, for other shapes and numbers, and columns of other lengths.
    """
    pixels = _pixels(images, channels)
    columns: dict[str, Any] = {}
    found = None
    if labels is not None:
        found, classes = _labels(labels, classes)
        columns["labels"] = found
    if captions is not None:
        columns["captions"] = [str(text) for text in captions]
    for name, column in columns.items():
        if len(column) != len(pixels):
            raise ValueError(f"{len(column)} {name} for {len(pixels)} images")
    notes = {"source": "handed over in Python"}
    held = held_images(pixels, found, classes or 0, notes=notes, captions=columns.get("captions"))
    name = held.fingerprint()
    _HELD[name] = held
    return Given(rows=name, **options)


def from_dataset(dataset: Iterable[Any], **options: Any) -> Given:
    """The same of the items of a dataset (PyTorch's, torchvision's, Hugging Face's), read once into
    memory. An item is an image, a tuple of an image and a label or caption, or a mapping with
    `image` (or `pixel_values`, `img`) and `label`, `caption` or `text`; an image is an array or a
    picture of Pillow, all of one size.

    Raises ValueError as `from_arrays`, and for items of another make.
    """
    rows: dict[str, list[Any]] = {"image": []}
    for item in _items(dataset):
        for name, value in _row(item).items():
            rows.setdefault(name, []).append(value)
    images = [_array(image) for image in rows["image"]]
    if not images:
        raise ValueError("the dataset has no items")
    for name, column in rows.items():
        if len(column) != len(images):
            raise ValueError(f"only {len(column)} of {len(images)} items have a {name}")
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        told = ", ".join(map(str, sorted(shapes)[:3]))
        raise ValueError(f"the images must be of one size, got {told}: resize them first")
    return from_arrays(np.stack(images), rows.get("label"), rows.get("caption"), **options)


NAMES = {
    **dict.fromkeys(("image", "img", "pixel_values"), "image"),
    **dict.fromkeys(("label", "labels", "fine_label"), "label"),
    **dict.fromkeys(("caption", "text"), "caption"),
}


def _items(dataset: Any) -> Iterable[Any]:
    """In order; of PyTorch's map-style datasets, which need not end by themselves, by number."""
    try:
        number = len(dataset)
    except TypeError:
        if not isinstance(dataset, Iterable):
            kind = type(dataset).__name__
            raise ValueError(f"a dataset has items, this is of type {kind}") from None
        return iter(dataset)
    return (dataset[i] for i in range(number))


def _row(item: Any) -> dict[str, Any]:
    """The columns of an item."""
    if isinstance(item, Mapping):
        found: dict[str, Any] = {}
        for name, value in item.items():
            if name in NAMES:
                found.setdefault(NAMES[name], value)
        if "image" not in found:
            raise ValueError(f"an item has no image: {', '.join(map(str, item))}")
        return found
    if not isinstance(item, tuple | list):
        return {"image": item}
    if len(item) != 2:
        raise ValueError(f"an item has {len(item)} parts: an image and its label are two")
    image, beside = item
    return {"image": image, "caption" if isinstance(beside, str) else "label": beside}


def _array(image: Any) -> Any:
    if isinstance(image, Tensor):
        return image.detach().cpu().numpy()
    return np.asarray(image)


def _pixels(images: Any, channels: Channels) -> Tensor:
    """(n, channels, height, width) uint8."""
    array = _array(images)
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim != 4:
        raise ValueError(f"images have the shape (n, height, width, channels), got {array.shape}")
    elif _last(array.shape, channels):
        array = array.transpose(0, 3, 1, 2)
    if not array.size:
        raise ValueError(f"no images: their shape is {array.shape}")
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"images in numbers lie in [0, 1], got {low:g} … {high:g}")
        array = np.round(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ValueError(f"images are uint8, or numbers in [0, 1], not {array.dtype}")
    return torch.from_numpy(np.ascontiguousarray(array))


def _last(shape: tuple[int, ...], channels: Channels) -> bool:
    """Whether the channels stand last. ValueError where the shape does not tell."""
    if channels != "auto":
        return channels == "last"
    first, last = shape[1] in COLOURS, shape[3] in COLOURS
    if first == last:
        raise ValueError(f"where are the channels of {shape}? say channels='first' or 'last'")
    return last


def _labels(labels: Any, classes: int | None) -> tuple[Tensor, int]:
    """(n,) int64, and the number of classes."""
    array = np.asarray([int(x) for x in labels] if isinstance(labels, list) else _array(labels))
    if array.ndim != 1 or not (array.dtype == bool or np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"labels are (n,) whole numbers, got {array.shape} {array.dtype}")
    found = torch.from_numpy(array.astype(np.int64))
    largest = int(found.max()) if len(found) else 0
    if classes is None:
        check_ids(largest, len(found.unique()), len(found), "labels")
        classes = largest + 1
    check_labels(found, classes, "labels")
    return found, classes
