"""Images in .npz files, as `fewstep sample` and other programs write samples."""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from fewstep.data.bounds import check_bytes, memory_for
from fewstep.data.dataset import Dataset, held_images
from fewstep.data.labels import UNLABELLED, check_ids, check_labels, listed, unlabelled
from fewstep.data.source import Source

IMAGES, LABELS, CAPTIONS = "arr_0.npy", "arr_1.npy", "captions.npy"
ELSE = "; np.savez(FILE, images, labels) writes it, fewstep.from_arrays takes arrays as they are"
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # as numpy writes
Array = np.ndarray[Any, np.dtype[Any]]
Header = tuple[tuple[int, ...], np.dtype[Any]]
"""Shape and type of an array."""


@dataclass(frozen=True)
class Npz(Source):
    """A .npz file: arr_0 holds images, (n, height, width, channels) of 0 … 255; arr_1 their
    classes, whole numbers, and `captions` a text for each, where there are such.
    """

    path: str = ""
    """The file."""

    @classmethod
    def files_at(cls, path: Path) -> list[Path]:
        return [path] if path.is_file() and path.suffix.lower() == ".npz" else []

    def read(self, beside: Path | None = None) -> Dataset:
        (file,) = self.found(self.path, "images (.npz)")
        arrays = _arrays(file)
        images = torch.from_numpy(arrays[IMAGES]).permute(0, 3, 1, 2)
        notes = {"files": str(file)}
        with zipfile.ZipFile(file) as archive:
            others = [name for name in archive.namelist() if name not in arrays]
        if others:
            notes["arrays not used"] = listed([name.removesuffix(".npy") for name in others])
        captions = None
        if CAPTIONS in arrays:
            captions = arrays[CAPTIONS].tolist()
            if len(captions) != len(images):
                raise ValueError(f"{file} has {len(captions)} captions for {len(images)} images")
        if LABELS not in arrays:
            return held_images(images, None, 0, notes=notes, captions=captions)
        numbers = arrays[LABELS]
        if len(numbers) != len(images):
            raise ValueError(f"{file} has {len(numbers)} labels for {len(images)} images")
        labels = torch.from_numpy(numbers.astype(np.int64))
        if not len(labels) or unlabelled(labels):
            notes["labels"] = f"arr_1 is {UNLABELLED}"
            return held_images(images, None, 0, notes=notes, captions=captions)
        largest, distinct = max(int(numbers.max()), 0), len(labels.unique())
        check_ids(largest, distinct, len(labels), f"{file}: arr_1")
        check_labels(labels, largest + 1, f"{file}: arr_1")
        return held_images(images, labels, largest + 1, notes=notes, captions=captions)


def _arrays(file: Path) -> dict[str, Array]:
    """Those that are used. What they say of themselves is checked before they are unpacked."""
    with _damage_named(file), zipfile.ZipFile(file) as archive:
        names = [name for name in (IMAGES, LABELS, CAPTIONS) if name in archive.namelist()]
        headers = {name: _header(archive, name) for name in names}
    _check_headers(file, headers)
    if CAPTIONS in headers and not _are_texts(*headers[CAPTIONS]):
        del headers[CAPTIONS]  # another program's, of another meaning
    check_bytes(file, sum(math.prod(s) * kind.itemsize for s, kind in headers.values()))
    with _damage_named(file), memory_for(file), zipfile.ZipFile(file) as archive:
        return {name: _array(archive, name) for name in headers}


def _check_headers(file: Path, headers: dict[str, Header]) -> None:
    """ValueError for images or labels of another shape or type."""
    if IMAGES not in headers:
        raise ValueError(f"{file} has no images: no arr_0 in it{ELSE}")
    shape, kind = headers[IMAGES]
    if len(shape) != 4 or kind != np.uint8 or 0 in shape[1:]:
        raise ValueError(
            f"{file}: arr_0 must be (n, height, width, channels) uint8, got {shape} {kind}{ELSE}"
        )
    if LABELS in headers:
        shape, kind = headers[LABELS]
        if len(shape) != 1 or not np.issubdtype(kind, np.integer):
            raise ValueError(f"{file}: arr_1 must be (n,) whole numbers, got {shape} {kind}")


def _are_texts(shape: tuple[int, ...], kind: np.dtype[Any]) -> bool:
    return len(shape) == 1 and kind.kind == "U"


@contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # what is forged can fail anywhere
        raise ValueError(f"{file} is damaged or no .npz file of numpy: {error}") from None


def _opened(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    if archive.getinfo(name).compress_type not in PACKED:
        raise ValueError(f"{name} is packed in another way than numpy does")
    return archive.open(name)


def _header(archive: zipfile.ZipFile, name: str) -> Header:
    with _opened(archive, name) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):  # a later one may have any length
            raise ValueError(f"the header of {name} is of another version than numpy's for images")
        try:
            shape, _, kind = np.lib.format.read_array_header_1_0(stream)
        except Exception:  # numpy has it parsed as Python: what is forged can fail anywhere
            raise ValueError(f"the header of {name} is none that numpy writes") from None
    if min(shape, default=0) < 0:
        raise ValueError(f"{name} is of shape {shape}")
    if kind.hasobject and name != CAPTIONS:
        raise ValueError(f"{name} holds objects, not numbers")
    return shape, kind


def _array(archive: zipfile.ZipFile, name: str) -> Array:
    with _opened(archive, name) as stream:
        array: Array = np.lib.format.read_array(stream, allow_pickle=False)
        if stream.read(1):  # asks for the checksum, too
            raise ValueError(f"{name} is longer than its header says")
    return array
