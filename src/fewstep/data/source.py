"""Data sources and what they read: a `Dataset` in memory, with its split, its fingerprint and its report."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fewstep.choice import Choice, Natural, Share

Split = Literal["all", "train", "test"]


@dataclass(eq=False)
class Dataset:
    """Images (n, channels, height, width) uint8 with labels (n,) int64 in 0 … classes - 1, or None.

    ids: the place of each image in its source, by which splits are chosen. notes: what was found, for `data check`.
    """

    images: Tensor
    labels: Tensor | None
    classes: int
    ids: Tensor
    notes: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image, (channels, height, width)."""
        return tuple(self.images.shape[1:])

    def floats(self, index: Tensor | slice = slice(None)) -> Tensor:
        """Images in [0, 1], float32."""
        return self.images[index].float() / 255

    def fingerprint(self) -> str:
        """A hash of all images and labels."""
        digest = hashlib.sha256(str((tuple(self.images.shape), self.classes)).encode())
        digest.update(self.images.numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()[:16]

    def select(self, keep: Tensor) -> Dataset:
        """The images at these indices."""
        labels = None if self.labels is None else self.labels[keep]
        return Dataset(self.images[keep], labels, self.classes, self.ids[keep], dict(self.notes))


@dataclass(frozen=True, kw_only=True)
class Source(Choice, ABC):
    """A data source. Its fields beside `limit`, `fraction` and `split` are its own.

    split: train and test are chosen by a hash of (seed, id), `held_out` of all to test; limit, fraction: a fixed choice
    of the rest.
    """

    folder: ClassVar[str | None] = "fewstep.data"
    held_out: ClassVar[float] = 0.2

    split: Split = "train"
    limit: Natural = 0
    fraction: Share = 1.0
    split_seed: int = 0

    @abstractmethod
    def read(self) -> Dataset:
        """Everything that the source holds. FileNotFoundError or ValueError that name the file."""

    def dataset(self, split: Split | None = None, empty: bool = False) -> Dataset:
        """The images of the split, after limit and fraction. ValueError where nothing is left, unless `empty`."""
        everything = self.read()
        split = self.split if split is None else split
        place = self._hash(everything.ids)
        keep = torch.ones(len(everything), dtype=torch.bool)
        if split != "all":
            keep = (place < self.held_out) == (split == "test")
        index = keep.nonzero()[:, 0]
        if self.fraction < 1:
            # Another hash than the split's, so that a fraction of the training split is an even choice of it.
            index = index[self._hash(everything.ids[index], "fraction") < self.fraction]
        if self.limit:
            index = index[: self.limit]
        if not len(index) and not empty:
            raise ValueError(f"no images left of {len(everything)} after split={split}, fraction={self.fraction}")
        return everything.select(index)

    def _hash(self, ids: Tensor, salt: str = "split") -> Tensor:
        """A number in [0, 1) for each id, the same on every machine (SplitMix64 of the id and the seed)."""
        key = int.from_bytes(hashlib.blake2b(f"{salt}|{self.split_seed}".encode(), digest_size=8).digest(), "little")
        z = ids.numpy().astype(np.uint64) + np.uint64(key)
        with np.errstate(over="ignore"):
            z = z * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return torch.from_numpy((z ^ (z >> np.uint64(31))).astype(np.float64) / 2.0**64)


def check_labels(labels: Tensor, classes: int, where: str) -> None:
    """ValueError where a label is not in 0 … classes - 1, with the first such image."""
    bad = ((labels < 0) | (labels >= classes)).nonzero()
    if len(bad):
        first = int(bad[0])
        raise ValueError(
            f"{where}: {len(bad)} labels out of range 0 … {classes - 1}, the first is {int(labels[first])} "
            f"of image {first}"
        )
