"""Writes a cache: each picture goes through the codec once, each caption through the
conditioner.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.choice import kind_of
from fewstep.data.cache_index import NULL, CacheIndex
from fewstep.data.captions import CHUNK, Captions
from fewstep.data.dataset import Dataset, Rows
from fewstep.data.reader import Reader
from fewstep.diffusion.draws import Draws
from fewstep.errors import NotFiniteError
from fewstep.files import replace_tensors, sha256
from fewstep.finite import bad_rows
from fewstep.models.codec import CodecModule
from fewstep.models.conditioner import ConditionerModule
from fewstep.models.fingerprint import weights_hash
from fewstep.models.space import Column, Image, Moments, Vectors

SHARD_BYTES = 256 << 20
MOST_ROWS = 4096  # of a file
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


class Encoders(NamedTuple):
    """What encodes the rows of a data set, on one device; None where it has nothing to do."""

    codec: CodecModule | None
    conditioner: ConditionerModule | None
    device: torch.device

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """Of images (n, channels, height, width) uint8."""
        assert self.codec is not None
        return self.codec.moments(images.to(self.device).float() / 255).cpu()

    @torch.no_grad()
    def embeddings(self, captions: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Of each caption, and the one row that is "no condition"."""
        assert self.conditioner is not None
        cond = self.conditioner({"caption": list(captions)})
        (name,) = self.conditioner.columns
        null = cond.null[name].cpu() if name in cond.null else None
        return cond[name].cpu(), null

    def parts(self) -> dict[str, CodecModule | ConditionerModule]:
        """Those that are there, by their names in a model."""
        found = {"codec": self.codec, "conditioner": self.conditioner}
        return {name: module for name, module in found.items() if module is not None}


def part_facts(module: CodecModule | ConditionerModule) -> dict[str, Any]:
    """What a codec or conditioner is, wherever it lies: its options, and a hash of its weights."""
    return {"options": module.spec, "weights": weights_hash(module)}


def encoders_for(
    dataset: Dataset,
    codec: CodecModule | None,
    conditioner: ConditionerModule | None,
    device: torch.device,
) -> Encoders:
    """Those that the data need. ValueError where they do not fit, or have nothing to do."""
    stored = [name for name in ("latent", "moments", "embedding") if name in dataset.columns]
    if stored:
        raise ValueError(f"the data holds {stored[0]} already: there is nothing to encode")
    images = "image" in dataset.columns
    if images and codec is None:
        raise ValueError("the data holds images, and nobody says which codec encodes them")
    texts = conditioner is not None and _reads_captions(conditioner, dataset)
    if not images and not texts:
        raise ValueError("neither codec nor conditioner has anything to encode in this data")
    found = Encoders(codec if images else None, conditioner if texts else None, device)
    for module in found.parts().values():
        module.to(device).eval()
    return found


def _reads_captions(conditioner: ConditionerModule, dataset: Dataset) -> bool:
    """Whether the data's captions become embeddings. ValueError where the conditioner does not fit
    the data, or what it makes cannot be kept as one column.
    """
    named = kind_of(type(conditioner.spec))
    if reason := conditioner.spec.unfit(dataset.space):
        raise ValueError(f"the conditioner {named}: {reason}")
    if "caption" not in dataset.columns or "caption" not in conditioner.spec.reads:
        return False
    kinds = list(conditioner.columns.values())
    if len(kinds) != 1 or not isinstance(kinds[0], Vectors):
        raise ValueError(f"{named} makes no single column of vectors: it cannot be cached")
    return True


def planned(dataset: Dataset, encoders: Encoders, dtype: str) -> CacheIndex:
    """The index of a cache of which nothing is written yet. ValueError where a codec draws and has
    no moments.
    """
    columns: dict[str, Column] = {}
    size = DTYPES[dtype].itemsize
    row_bytes = 0.0
    if encoders.codec is not None:
        images = dataset.rows(torch.arange(1), ["image"])["image"]
        _check_moments(encoders.codec, images.to(encoders.device).float() / 255)
        shape = encoders.moments(images).shape[1:]
        column = dataset.columns["image"]
        assert isinstance(column, Image)
        columns["moments"] = Moments(tuple(shape), encoders.codec.spec.shape(column.shape))
        row_bytes += shape.numel() * size * (2 if dataset.flip else 1)
    if encoders.conditioner is not None:
        (vectors,) = encoders.conditioner.columns.values()
        assert isinstance(vectors, Vectors)
        columns["embedding"] = vectors
        one = torch.Size(vectors.shape).numel() * size
        row_bytes += one * _count(dataset) / len(dataset)
    columns |= {name: column for name, column in dataset.columns.items() if name != "image"}
    shard = max(1, min(MOST_ROWS, int(SHARD_BYTES / row_bytes)))
    facts: dict[str, Any] = {"data": dataset.fingerprint(), "dtype": dtype, "flip": dataset.flip}
    for name in ("codec", "conditioner"):
        module = encoders.parts().get(name)
        facts[name] = None if module is None else part_facts(module)
    return CacheIndex(facts, columns, len(dataset), shard, round(len(dataset) * row_bytes))


def write(
    index: CacheIndex,
    dataset: Dataset,
    encoders: Encoders,
    folder: Path,
    batch: int,
    workers: int = 0,
) -> Iterator[int]:
    """Writes what is missing in the folder, `batch` pictures or captions at a time; gives the rows
    that are there behind each file. workers: processes that read pictures ahead; they change no
    bit. NotFiniteError where what was encoded is not finite.
    """
    dtype = DTYPES[index.facts["dtype"]]
    null = None if encoders.conditioner is None else encoders.embeddings([""])[1]
    with closing(_Pictures(dataset, index, batch, workers)) as pictures:
        for name, rows in {NULL: range(0), **index.shards()}.items():
            if not index.is_whole(folder / name):
                tensors = {} if null is None else {"null": null.to(dtype)}
                if name != NULL:
                    tensors = _beside(dataset, rows, encoders, null, batch)
                    tensors |= _encoded(pictures.of(name), encoders, dataset.flip)
                    tensors = _stored(tensors, dtype, rows)
                replace_tensors(folder / name, tensors)
                index.files[name] = sha256(folder / name)
                index.write(folder)
            yield rows.stop


class _Pictures:
    """The pictures of each file in parts of `batch`, read ahead by workers."""

    def __init__(self, dataset: Dataset, index: CacheIndex, batch: int, workers: int):
        self.dataset = dataset
        self.parts: list[Tensor] = []
        self.numbers: dict[str, range] = {}
        for name, rows in index.shards().items():
            parts = torch.arange(rows.start, rows.stop).split(batch)
            self.numbers[name] = range(len(self.parts), len(self.parts) + len(parts))
            self.parts.extend(parts)
        self.whole = range(batch)
        self.reader = Reader(self.read, self.whole, 0 if dataset.in_memory else workers)

    def read(self, number: int, rows: range) -> Rows:
        """All of a part, whatever `rows`; behind the last, where workers read ahead, that again."""
        return self.dataset.rows(self.parts[min(number, len(self.parts) - 1)], ["image"])

    def of(self, name: str) -> Iterator[Tensor]:
        """(up to batch, channels, height, width) uint8; nothing where the data holds none."""
        for number in self.numbers[name] if "image" in self.dataset.columns else ():
            yield self.reader(number, self.whole, False)["image"]

    def close(self) -> None:
        self.reader.close()


def _check_moments(codec: CodecModule, images: Tensor) -> None:
    """ValueError where what the codec draws does not come from its moments."""
    with torch.no_grad():
        drawn = codec.encode(images, Draws(0, range(1), device=images.device))
        again = codec.latents(codec.moments(images), Draws(0, range(1), device=images.device))
    if not torch.allclose(drawn, again, rtol=1e-3, atol=1e-3):
        named = kind_of(type(codec.spec))
        raise ValueError(f"{named} draws in encode, and not from its moments: it cannot be cached")


def _count(dataset: Dataset) -> int:
    """How many captions there are, empty ones as well."""
    if "captions" not in dataset.columns:
        return len(dataset)
    count = 0
    for index in torch.arange(len(dataset)).split(CHUNK):
        count += sum(map(len, dataset.rows(index, ["captions"])["captions"]))
    return count


def _beside(
    dataset: Dataset, rows: range, encoders: Encoders, null: Tensor | None, batch: int
) -> dict[str, Tensor]:
    """What these rows hold beside their pictures, and the embeddings of their captions."""
    index = torch.arange(rows.start, rows.stop)
    read = dataset.rows(index, [name for name in dataset.columns if name != "image"])
    found = {"ids": dataset.ids[index]}
    if "label" in read:
        found["label"] = read["label"]
    if "caption" in read:
        several = read.get("captions") or [(caption,) for caption in read["caption"]]
        found["captions"] = _packed(several)
        if encoders.conditioner is not None:
            flat = [caption for some in several for caption in some]
            found["embedding"] = _embedded(encoders, flat, null, batch)
    return found


def _encoded(pictures: Iterable[Tensor], encoders: Encoders, flip: bool) -> dict[str, Tensor]:
    """The moments of pictures, and where `flip` says so of what they are mirrored."""
    found: dict[str, list[Tensor]] = {}
    for images in pictures:
        found.setdefault("moments", []).append(encoders.moments(images))
        if flip:
            found.setdefault("mirrored", []).append(encoders.moments(images.flip(-1)))
    return {name: torch.cat(parts) for name, parts in found.items()}


def _embedded(
    encoders: Encoders, captions: Sequence[str], null: Tensor | None, batch: int
) -> Tensor:
    """(captions, *shape); that of an empty caption is the null row, bit by bit."""
    found = []
    for first in range(0, len(captions), batch):
        found.append(encoders.embeddings(captions[first : first + batch])[0])
    embedded = torch.cat(found)
    empty = torch.tensor([not caption for caption in captions])
    if null is not None:
        embedded[empty] = null
    return embedded


def _packed(captions: Sequence[Captions]) -> Tensor:
    """Captions as bytes of JSON."""
    content = json.dumps([list(some) for some in captions]).encode()
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def unpacked(content: Tensor) -> list[Captions]:
    """What `_packed` made bytes of. ValueError where it is none."""
    rows = json.loads(content.numpy().tobytes().decode())
    return [tuple(map(str, some)) for some in rows]


def _stored(tensors: Mapping[str, Tensor], dtype: torch.dtype, rows: range) -> dict[str, Tensor]:
    """Floats in this type. NotFiniteError where they are not finite in it."""
    found = {}
    for name, tensor in tensors.items():
        found[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        if bad := int(bad_rows(found[name]).sum()):
            raise NotFiniteError(
                f"{name} of {bad} entries of the rows {rows.start} … {rows.stop - 1} are not "
                "finite: nothing of them is cached (float16 ends at 65,504: --dtype fp32)"
            )
    return found
