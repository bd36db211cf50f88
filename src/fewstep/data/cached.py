"""Latents and embeddings that `fewstep data cache` has written."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.cache_index import INDEX, NULL, CacheIndex, read_index
from fewstep.data.caching import unpacked
from fewstep.data.captions import Captions, rows_of
from fewstep.data.dataset import Dataset, MadeBy, Rows, captioned, mirrored
from fewstep.data.index import DIGEST, file_hash, indexed
from fewstep.data.labels import check_labels
from fewstep.data.source import Source, located
from fewstep.files import mapped_tensors
from fewstep.models.space import Classes, Column, Moments, Space, Vectors, data_space

WHAT = "a cache (fewstep data cache)"


@dataclass(frozen=True)
class Cached(Source):
    """A folder that `fewstep data cache` has written: trains without running the codec or the
    conditioner that made it, which the model must have. Rows, splits and draws are those of the
    data that were cached.
    """

    path: str = ""
    """The folder."""

    @classmethod
    def files_at(cls, path: Path) -> list[Path]:
        index = path / INDEX
        shards = sorted(path.glob("shard-*.safetensors")) if index.is_file() else []
        return [index, *shards] if shards else []

    def foreseen(self) -> Space | None:
        folder = Path(self.path)
        return data_space(read_index(folder).columns) if (folder / INDEX).is_file() else None

    def read(self, beside: Path | None = None) -> Dataset:
        folder = located(self.path, WHAT)
        index = read_index(folder)
        if missing := index.missing():
            told = f"{len(missing)} of its files are not written yet ({missing[0]} …)"
            raise ValueError(f"{folder}: {told}: the same fewstep data cache goes on")
        if self.flip and not index.facts.get("flip"):
            raise ValueError(f"{folder} holds no mirrored images: cache them with flip=true")
        _check_files(index, folder, beside)
        return CachedRows(index, folder)


def _check_files(index: CacheIndex, folder: Path, beside: Path | None) -> None:
    """ValueError where a file is not what was written."""
    names = list(index.files)
    kept = None if beside is None else beside / "files.safetensors"
    found = indexed([folder / name for name in names], names, _looked_at, kept)
    for name, digest in zip(names, found.digests):
        if bytes(digest.tolist()).hex() != index.files[name][: 2 * DIGEST]:
            raise ValueError(
                f"{folder / name} is damaged: its sha256 is not the one in {INDEX}; the same "
                "fewstep data cache makes it again"
            )


def _looked_at(file: Path) -> tuple[bytes, tuple[int, int, int]]:
    return file_hash(file), (0, 0, 0)


class CachedRows(Dataset):
    """Rows of a cache: what is large stays in its files, mapped into memory."""

    in_memory = False
    flip = False

    def __init__(self, index: CacheIndex, folder: Path):
        self.index, self.columns = index, dict(index.columns)
        self.files = [folder / name for name in index.shards()]
        self._maps: dict[int, dict[str, Tensor]] = {}
        ids, labels, captions, firsts = [], [], [], []
        for shard, rows in enumerate(index.shards().values()):
            tensors, several = self._checked(shard, len(rows))
            ids.append(tensors["ids"])
            if "label" in tensors:
                labels.append(tensors["label"])
            captions.extend(several)
            firsts.append(_firsts([len(some) for some in several]))
        self.ids = torch.cat(ids)
        self.places = torch.arange(len(self.ids))  # rows of the cache
        self.held = {"label": torch.cat(labels)} if labels else {}
        self.captions, self.firsts = captions, torch.cat(firsts)
        null = mapped_tensors(folder / NULL).get("null")
        self.made_by = MadeBy(index.facts, null)
        self.notes = {"files": f"{len(self.files)} in {folder}", **_told(index)}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_maps": {}}  # each process maps the files itself

    def rows(self, index: Tensor, columns: Sequence[str] | None = None) -> Rows:
        """The first caption and its embedding; moments of what is not mirrored."""
        places = self.places[index]
        wanted = list(self.columns if columns is None else columns)
        found: Rows = {}
        for name in wanted:
            if name == "moments":
                found[name] = self._read([name] * len(places), places, places % self.index.shard)
            elif name == "embedding":
                found[name] = self._embeddings(places, torch.zeros_like(places))
            elif name in self.held:
                found[name] = self.held[name][places]
            else:
                found |= rows_of([self.captions[place] for place in places.tolist()], [name])
        return found

    def drawn(self, index: Tensor, seed: int, step: int, places: range) -> Rows:
        mine = self.places[index]
        found = self.rows(index, [n for n in self.columns if n not in ("moments", "embedding")])
        several = found.pop("captions", None)
        chosen = torch.zeros_like(mine)
        if several is not None:
            chosen = captioned(seed, step, places, [len(some) for some in several])
            found["caption"] = [some[i] for some, i in zip(several, chosen.tolist())]
        if "embedding" in self.columns:
            found["embedding"] = self._embeddings(mine, chosen)
        if "moments" in self.columns:
            turned = mirrored(seed, step, places).tolist() if self.flip else [False] * len(mine)
            names = ["mirrored" if one else "moments" for one in turned]
            found["moments"] = self._read(names, mine, mine % self.index.shard)
        return found

    def select(self, keep: Tensor) -> CachedRows:
        chosen = copy.copy(self)
        chosen.ids, chosen.places = self.ids[keep], self.places[keep]
        chosen.notes, chosen._maps = dict(self.notes), {}
        return chosen

    def fingerprint(self) -> str:
        told = json.dumps([self.index.facts, self.index.files], sort_keys=True)
        digest = hashlib.sha256(told.encode() + self.places.numpy().tobytes())
        return digest.hexdigest()[:16]

    def _embeddings(self, places: Tensor, chosen: Tensor) -> Tensor:
        """Of the chosen caption of each row of the cache."""
        return self._read(["embedding"] * len(places), places, self.firsts[places] + chosen)

    def _read(self, names: Sequence[str], places: Tensor, entries: Tensor) -> Tensor:
        """For each row of the cache an entry of one of its file's tensors, in the type that is
        stored.
        """
        found = []
        for name, place, entry in zip(names, places.tolist(), entries.tolist()):
            found.append(self._mapped(place // self.index.shard)[name][entry])
        return torch.stack(found)

    def _mapped(self, shard: int) -> dict[str, Tensor]:
        if shard not in self._maps:
            self._maps[shard] = mapped_tensors(self.files[shard])
        return self._maps[shard]

    def _checked(self, shard: int, rows: int) -> tuple[dict[str, Tensor], list[Captions]]:
        """The tensors of a file, and its captions. ValueError where they are not what the index
        says.
        """
        tensors, file = self._mapped(shard), self.files[shard]
        try:
            captions = unpacked(tensors["captions"]) if "caption" in self.columns else []
            expected = _expected(self.columns, rows, captions)
            right = all(captions) and len(captions) in (0, rows)
            for name in {*tensors, *expected} - {"captions", "mirrored"}:
                right &= _as_told(tensors[name]) == expected[name]
            if "mirrored" in tensors:
                right &= _as_told(tensors["mirrored"]) == expected["moments"]
        except (LookupError, ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{file} is no file of a cache: {error}") from None
        if not right:
            raise ValueError(f"{file} does not hold what {INDEX} says")
        if "label" in tensors:
            check_labels(tensors["label"], self.classes, str(file))
        return tensors, captions


Told = tuple[list[int], bool]  # of a tensor: its shape, and whether it holds floats


def _as_told(tensor: Tensor) -> Told:
    whole = tensor.dtype == torch.int64
    if not whole and not tensor.is_floating_point():
        raise ValueError(f"a tensor of {tensor.dtype}")
    return list(tensor.shape), not whole


def _expected(
    columns: Mapping[str, Column], rows: int, captions: Sequence[Captions]
) -> dict[str, Told]:
    """What a file holds of so many rows with these captions."""
    found: dict[str, Told] = {"ids": ([rows], False)}
    for name, column in columns.items():
        if isinstance(column, Moments):
            found[name] = [rows, *column.shape], True
        if isinstance(column, Vectors):
            found[name] = [sum(map(len, captions)), *column.shape], True
        if isinstance(column, Classes):
            found[name] = [rows], False
    return found


def _firsts(counts: Sequence[int]) -> Tensor:
    """Where the entries of each row begin."""
    lengths = torch.tensor(counts, dtype=torch.int64)
    return lengths.cumsum(0) - lengths


def _told(index: CacheIndex) -> dict[str, str]:
    told = {"stored as": str(index.facts.get("dtype"))}
    if index.facts.get("flip"):
        told["mirrored"] = "every image also mirrored"
    return told
