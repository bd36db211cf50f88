"""What is known of files without reading them again: hashes of contents, sizes of pictures.

A file is known by its name, size and time of change; an index beside a run keeps what was read of
it, so that a second start reads nothing. Contents that change without a new size or time are not
seen, as in any such index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewstep.data.metadata import unwarned
from fewstep.files import load_tensors, replace_tensors, sha256

DIGEST = 16  # bytes of a hash that are kept
THREADS = 4
NOT_UTF8 = "surrogateescape"  # names that are no UTF-8 keep their bytes
Look = Callable[[Path], tuple[bytes, tuple[int, int, int]]]


@dataclass(eq=False)
class Index:
    """One entry per file, in the order of `names`.

    sizes: in bytes. times: of the last change, in nanoseconds. digests: (n, 16) of the contents.
    headers: (n, 3) of a picture, as `pictures.header`: width, height (as it is shown), what is
    known of it; 0 0 0 where it cannot be read.
    """

    names: list[str]
    sizes: Tensor
    times: Tensor
    digests: Tensor
    headers: Tensor

    def stamp(self) -> str:
        """A hash of all contents in their order."""
        return hashlib.sha256(self.digests.numpy().tobytes()).hexdigest()


def indexed(files: Sequence[Path], names: Sequence[str], look: Look, beside: Path | None) -> Index:
    """The index of these files, from `beside` where it knows them, else by looking at them.

    names: how each file is known in the index. look: reads a file, and gives the hash of its
    contents and what its header says. beside: the file that keeps the index; what was looked at is
    written there.
    """
    sizes = torch.empty(len(files), dtype=torch.int64)
    times = torch.empty(len(files), dtype=torch.int64)
    for place, file in enumerate(files):
        stat = file.stat()
        sizes[place], times[place] = stat.st_size, stat.st_mtime_ns
    found = Index(
        list(names),
        sizes,
        times,
        torch.zeros(len(files), DIGEST, dtype=torch.uint8),
        torch.zeros(len(files), 3, dtype=torch.int32),
    )
    unknown = _recalled(found, None if beside is None else _read(beside))
    if len(unknown):
        with unwarned(), ThreadPoolExecutor(THREADS) as pool:
            looks = pool.map(look, [files[place] for place in unknown])
            for place, (digest, header) in zip(unknown, looks):
                found.digests[place] = torch.frombuffer(
                    bytearray(digest[:DIGEST]), dtype=torch.uint8
                )
                found.headers[place] = torch.tensor(header, dtype=torch.int32)
        if beside is not None:
            _write(beside, found)
    return found


def _recalled(found: Index, old: Index | None) -> list[int]:
    """Fills in what the old index knows; returns the places that it does not."""
    if old is None:
        return list(range(len(found.names)))
    if old.names == found.names:
        places = torch.arange(len(found.names))
    else:
        known = {name: place for place, name in enumerate(old.names)}
        places = torch.tensor([known.get(name, -1) for name in found.names], dtype=torch.int64)
    at = places.clamp(min=0)
    if not len(old.names):
        return list(range(len(found.names)))
    same = (places >= 0) & (old.sizes[at] == found.sizes) & (old.times[at] == found.times)
    found.digests[same] = old.digests[at][same]
    found.headers[same] = old.headers[at][same]
    return (~same).nonzero()[:, 0].tolist()


def _read(beside: Path) -> Index | None:
    """The index in a file; None where there is none, or it is of no use: it is made anew."""
    try:
        tensors = load_tensors(beside)
        names = tensors["names"].numpy().tobytes().decode(errors=NOT_UTF8)
        index = Index(
            names.split("\0") if names else [],
            tensors["sizes"],
            tensors["times"],
            tensors["digests"],
            tensors["headers"],
        )
    except (OSError, ValueError, KeyError):
        return None
    lengths = {len(index.names), len(index.sizes), len(index.times)}
    whole = lengths == {len(index.digests)} == {len(index.headers)}
    return index if whole else None


def _write(beside: Path, index: Index) -> None:
    names = "\0".join(index.names).encode(errors=NOT_UTF8)
    replace_tensors(
        beside,
        {
            "names": torch.frombuffer(bytearray(names), dtype=torch.uint8),
            "sizes": index.sizes,
            "times": index.times,
            "digests": index.digests,
            "headers": index.headers,
        },
    )


def contents_hash(content: bytes) -> bytes:
    """The hash that an index keeps of a file's bytes."""
    return hashlib.sha256(content).digest()[:DIGEST]


def file_hash(file: Path) -> bytes:
    """The same of a file of any size, read in pieces."""
    return bytes.fromhex(sha256(file))[:DIGEST]
