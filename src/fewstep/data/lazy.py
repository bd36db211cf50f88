"""Pictures that are decoded when they are read, of sets that do not fit in memory."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.bounds import memory_for
from fewstep.data.captions import Captions, columns_of, missing, rows_of
from fewstep.data.dataset import Dataset, Held, Rows
from fewstep.data.index import contents_hash, indexed
from fewstep.data.metadata import unwarned
from fewstep.data.pictures import (
    GREY,
    ODD,
    Channels,
    How,
    Picture,
    checked_header,
    decode,
    decode_all,
    header,
    left_out,
    read,
    stacked,
    unread_metadata,
)
from fewstep.models.space import Classes, Column, Image

CHUNK = 256  # rows that are read together where all are
MEMORY = 64 << 20  # bytes of decoded pictures up to which a set is decoded once and kept


class Encoded(ABC):
    """Pictures as they are stored, by their place, and what stands beside them."""

    columns: Mapping[str, Column]  # beside the image, but for what is held in memory

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, place: int) -> str:
        """By which messages call it."""

    @abstractmethod
    def contents(self, places: Sequence[int]) -> list[bytes]:
        """Encoded pictures."""

    def beside(self, places: Sequence[int], names: Sequence[str]) -> Rows:
        """These columns at these places."""
        return {}


class Files(Encoded):
    """A picture in each file. captions: of each, where there are any."""

    def __init__(self, files: Sequence[Path], captions: Sequence[Captions] = ()):
        self.columns = columns_of(captions)
        self.files, self.captions = [str(file) for file in files], captions

    def __len__(self) -> int:
        return len(self.files)

    def name(self, place: int) -> str:
        return self.files[place]

    def contents(self, places: Sequence[int]) -> list[bytes]:
        return [Path(self.files[place]).read_bytes() for place in places]

    def beside(self, places: Sequence[int], names: Sequence[str]) -> Rows:
        return rows_of([self.captions[place] for place in places], names)


def pictures(
    encoded: Encoded,
    headers: Tensor | None,
    held: Mapping[str, Tensor],
    columns: Mapping[str, Column],
    how: How,
    stamp: str,
    notes: Mapping[str, str],
    workers: int,
    memory: int = MEMORY,
) -> Dataset:
    """The dataset of these pictures: kept in memory where they are few, else read when needed.

    headers: (n, 3) as `pictures.header` gives them; None where nobody looked, which needs `size`
    and `channels` to be said. held: columns of all pictures in memory (labels), described by
    `columns`. stamp: a hash of all contents. memory: bytes of decoded pictures up to which a set is
    decoded at once, by so many threads as there are `workers`. ValueError for pictures that
    cannot be read, or are of different sizes.
    """
    if not len(encoded):
        raise ValueError("no pictures")
    stamp = hashlib.sha256(f"{stamp} {how.size} {how.channels}".encode()).hexdigest()
    if headers is not None and _decoded_bytes(headers, how) <= memory:
        return decoded(encoded, held, columns, how, notes, workers)
    ids = torch.arange(len(encoded))
    if headers is not None:
        unread = (headers[:, 0] == 0).nonzero()[:, 0].tolist()
        bad = [(encoded.name(place), _reason(encoded, place)) for place in unread]
        odd = (headers[:, 2] & ODD).nonzero()[:, 0].tolist()
        told = unread_metadata([encoded.name(place) for place in odd], len(encoded))
        notes = {**notes, **left_out(bad, len(encoded), how.on_bad), **told}
        ids = (headers[:, 0] > 0).nonzero()[:, 0]
        how = how._replace(channels=_channels(how.channels, headers[ids]))
    assert how.channels != "auto", "channels of pictures that nobody looked at"
    shape = _shape(encoded, headers, ids, how)
    described = {"image": Image(shape), **columns}
    return Stored(encoded, held, described, how, stamp, ids, notes)


def _decoded_bytes(headers: Tensor, how: How) -> int:
    """Of all pictures, once they are decoded."""
    pixels = headers[:, :2].long().prod(1)
    if how.size:
        pixels = (pixels > 0) * how.size**2
    return int(pixels.sum()) * (1 if how.channels == "grey" else 3)


def decoded(
    encoded: Encoded,
    held: Mapping[str, Tensor],
    columns: Mapping[str, Column],
    how: How,
    notes: Mapping[str, str],
    workers: int,
) -> Held:
    """All rows, read now and kept in memory."""
    everything = range(len(encoded))
    named = [(encoded.name(i), content) for i, content in enumerate(encoded.contents(everything))]
    images, ids, left = decode_all(named, how, workers)
    values: dict[str, Tensor | list[Any]] = {"image": images}
    values |= {name: column[ids] for name, column in held.items()}
    if encoded.columns:
        values |= encoded.beside(ids.tolist(), list(encoded.columns))
    described = {"image": Image(tuple(images.shape[1:])), **columns, **encoded.columns}
    return Held(values, described, ids, {**notes, **left})


def of_files(
    files: Sequence[Path],
    root: Path,
    labels: Tensor | None,
    classes: int,
    how: How,
    notes: Mapping[str, str],
    workers: int,
    beside: Path | None,
    captions: Sequence[Captions] = (),
) -> Dataset:
    """The dataset of picture files below `root`, with a label for each file, or None, and its
    captions, where any has some.

    beside: the folder that keeps an index of them. ValueError as `pictures`.
    """
    names = [str(file.relative_to(root)) if file != root else file.name for file in files]
    checks = how.on_bad != "error"
    kept = None if beside is None else beside / f"{'checked' if checks else 'files'}.safetensors"
    index = indexed(files, names, looked_through if checks else looked_at, kept)
    stamp = hashlib.sha256(index.stamp().encode())
    held: dict[str, Tensor] = {}
    columns: dict[str, Column] = {}
    if labels is not None:
        held["label"], columns["label"] = labels, Classes(classes)
        stamp.update(labels.numpy().tobytes() + str(classes).encode())
    encoded = Files(files, captions)
    if encoded.columns:
        stamp.update(json.dumps(captions).encode())
        gone = [name for name, several in zip(names, captions) if not several]
        notes = {**notes, **missing(gone, len(files))}
    return pictures(encoded, index.headers, held, columns, how, stamp.hexdigest(), notes, workers)


def looked_at(file: Path) -> tuple[bytes, tuple[int, int, int]]:
    """The hash of a picture's file, and its header."""
    with memory_for(file):
        content = file.read_bytes()
        return contents_hash(content), header(content)


def looked_through(file: Path) -> tuple[bytes, tuple[int, int, int]]:
    """The same of one that is decoded once, as damage that is left out has to be known before the
    first row is read.
    """
    with memory_for(file):
        content = file.read_bytes()
        return contents_hash(content), checked_header(content)


class Stored(Dataset):
    """Rows that are read, and whose picture is decoded, when they are needed. None of them is
    another than it was when the set was opened: a picture that turns out damaged is an error.
    """

    in_memory = False

    def __init__(
        self,
        encoded: Encoded,
        held: Mapping[str, Tensor],
        columns: Mapping[str, Column],
        how: How,
        stamp: str,
        ids: Tensor,
        notes: Mapping[str, str],
        flip: bool = False,
    ):
        self.encoded, self.held, self.columns, self.how = encoded, held, dict(columns), how
        self.columns |= encoded.columns
        self.stamp, self.ids, self.notes, self.flip = stamp, ids, dict(notes), flip

    def rows(self, index: Tensor, columns: Sequence[str] | None = None) -> Rows:
        wanted = list(self.columns if columns is None else columns)
        places = self.ids[index].tolist()
        found: Rows = {}
        if "image" in wanted:
            found["image"] = self._images(places)
        for name in wanted:
            if name in self.held:
                found[name] = self.held[name][torch.tensor(places, dtype=torch.int64)]
        rest = [name for name in wanted if name in self.encoded.columns]
        if rest:
            found |= self.encoded.beside(places, rest)
        return {name: found[name] for name in wanted}

    def select(self, keep: Tensor) -> Stored:
        return Stored(
            self.encoded,
            self.held,
            self.columns,
            self.how,
            self.stamp,
            self.ids[keep],
            self.notes,
            self.flip,
        )

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.stamp.encode() + self.ids.numpy().tobytes())
        return digest.hexdigest()[:16]

    def verify(self) -> None:
        odd = []
        for first in range(0, len(self), CHUNK):
            places = self.ids[first : first + CHUNK].tolist()
            if self.encoded.columns:
                self.encoded.beside(places, list(self.encoded.columns))
            if "image" in self.columns:
                odd += [name for name, picture in self._decoded(places) if picture.odd]
        self.notes |= unread_metadata(odd, len(self))

    def _images(self, places: list[int]) -> Tensor:
        """The pictures at these places."""
        decoded = self._decoded(places)
        images = stacked([one.pixels for _, one in decoded], [name for name, _ in decoded])
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(
                f"{decoded[0][0]} is of {tuple(images.shape[1:])}, not of {self.shape}"
            )
        return images

    def _decoded(self, places: list[int]) -> list[tuple[str, Picture]]:
        """The pictures at these places, with their names."""
        found = []
        with unwarned():
            for place, content in zip(places, self.encoded.contents(places)):
                name = self.encoded.name(place)
                try:
                    with memory_for(name):
                        picture = read(content, self.how.size, self.how.channels)
                except MemoryError:
                    raise
                except Exception as error:  # damaged content makes Pillow raise any type there is
                    left_out([(name, f"{name}: {error}")], len(self), "error")
                found.append((name, picture))
        return found


def _channels(asked: Channels, headers: Tensor) -> Channels:
    if asked != "auto":
        return asked
    return "grey" if len(headers) and bool((headers[:, 2] & GREY).all()) else "rgb"


def _shape(encoded: Encoded, headers: Tensor | None, ids: Tensor, how: How) -> tuple[int, int, int]:
    """Of all pictures. ValueError where there are none, or they differ."""
    depth = 1 if how.channels == "grey" else 3
    if how.size:
        return depth, how.size, how.size
    assert headers is not None
    sides = headers[ids, :2]
    other = (sides != sides[0]).any(1).nonzero()
    if len(other):
        places = int(ids[0]), int(ids[int(other[0])])
        told = [f"{encoded.name(p)} of {int(headers[p, 1])}×{int(headers[p, 0])}" for p in places]
        what = " and ".join(told)
        raise ValueError(f"pictures of different sizes, {what}: size=N makes all of them N×N")
    return depth, int(sides[0, 1]), int(sides[0, 0])


def _reason(encoded: Encoded, place: int) -> str:
    """Why a picture cannot be read, as decoding says it."""
    name = encoded.name(place)
    try:
        with unwarned():
            decode(encoded.contents([place])[0])
    except MemoryError:
        raise
    except Exception as error:  # damaged content makes Pillow raise any type there is
        return f"{name}: {error}"
    return f"{name}: it cannot be read"
