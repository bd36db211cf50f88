"""`Dataset`: rows of named columns, read when they are needed."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.diffusion.draws import Draws
from fewstep.models.space import Column, Space, Text, data_space, image_space

Rows = dict[str, Any]  # a tensor or a list of texts by column, one entry per row


class MadeBy(NamedTuple):
    """What made the moments and embeddings of a cache. facts: by name, `codec` and `conditioner`
    among them, None where they were not needed. null: the embedding that means "no condition",
    (1, *shape), where there is one.
    """

    facts: Mapping[str, Any]
    null: Tensor | None


class Dataset(ABC):
    """Rows 0 … len - 1 of named columns.

    Known columns: image (uint8, channels × height × width), latent (float32, in model space),
    moments (what a codec draws a latent from), label (int64, 0 … classes - 1), caption (text),
    captions (all of a row, where some have several, of which `caption` is the first), embedding
    (floats). columns: what an entry of each is. ids: the place of each row in its source, by which
    splits are chosen. notes: what was found, for `data check`. flip: whether a training sees half
    of the images mirrored (`drawn`; `rows` never are). in_memory: whether reading rows is not worth
    a worker. made_by: of a cache, what made it.
    """

    columns: Mapping[str, Column]
    ids: Tensor
    notes: dict[str, str]
    flip: bool
    in_memory: bool
    made_by: MadeBy | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def rows(self, index: Tensor, columns: Sequence[str] | None = None) -> Rows:
        """These rows; only the columns named, where any are. ValueError names what cannot be
        read.
        """

    def drawn(self, index: Tensor, seed: int, step: int, places: range) -> Rows:
        """The rows at `index` as a training sees them at these places of batch `step`: half of the
        images mirrored where `flip` says so, one of several captions. Errors as `rows`.
        """
        read = self.rows(index)
        if self.flip and "image" in read:
            chosen = mirrored(seed, step, places)[:, None, None, None]
            read["image"] = torch.where(chosen, read["image"].flip(-1), read["image"])
        if "captions" in read:
            texts = read.pop("captions")
            chosen = captioned(seed, step, places, [len(several) for several in texts])
            read["caption"] = [several[i] for several, i in zip(texts, chosen.tolist())]
        return read

    @abstractmethod
    def select(self, keep: Tensor) -> Dataset:
        """The rows at these indices."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the contents of all rows, and of how they are read."""

    def verify(self) -> None:  # noqa: B027
        """Reads everything once; what is wrong and may be left out stands in `notes` afterwards."""

    @property
    def space(self) -> Space:
        """What a model must agree on with these rows."""
        return data_space(self.columns)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample, (channels, height, width); () where there are no samples."""
        return self.space.shape

    @property
    def classes(self) -> int:
        """The number of classes; 0 where there are no labels."""
        return self.space.classes

    @property
    def labels(self) -> Tensor | None:
        """All labels, (n,) int64; None where there are none."""
        if "label" not in self.columns:
            return None
        labels: Tensor = self.rows(torch.arange(len(self)), ["label"])["label"]
        return labels

    @property
    def images(self) -> Tensor:
        """All pictures, (n, channels, height, width) uint8, read at once."""
        images: Tensor = self.rows(torch.arange(len(self)), ["image"])["image"]
        return images

    def floats(self, index: Tensor | slice = slice(None)) -> Tensor:
        """Images in [0, 1], float32."""
        place = torch.arange(len(self))[index]
        images: Tensor = self.rows(place, ["image"])["image"]
        return images.float() / 255


class Held(Dataset):
    """Rows that live in memory."""

    in_memory = True

    def __init__(
        self,
        values: Mapping[str, Tensor | list[Any]],
        columns: Mapping[str, Column],
        ids: Tensor,
        notes: Mapping[str, str] | None = None,
        flip: bool = False,
    ):
        self.values, self.columns, self.ids = dict(values), dict(columns), ids
        self.notes, self.flip = dict(notes or {}), flip
        assert all(len(value) == len(ids) for value in values.values())

    def rows(self, index: Tensor, columns: Sequence[str] | None = None) -> Rows:
        found: Rows = {}
        for name in self.values if columns is None else columns:
            value = self.values[name]
            if isinstance(value, Tensor):
                found[name] = value[index]
            else:
                found[name] = [value[i] for i in index.tolist()]
        return found

    def select(self, keep: Tensor) -> Held:
        return Held(self.rows(keep), self.columns, self.ids[keep], self.notes, self.flip)

    def fingerprint(self) -> str:
        images = self.values.get("image")
        shape = tuple(images.shape) if isinstance(images, Tensor) else (len(self),)
        digest = hashlib.sha256(str((shape, self.classes)).encode())
        for name, value in self.values.items():
            if name not in ("image", "label"):
                digest.update(name.encode())
            if isinstance(value, Tensor):
                digest.update(value.contiguous().numpy().tobytes())
                continue
            for text in value:
                digest.update("\n".join([text] if isinstance(text, str) else text).encode() + b"\0")
        return digest.hexdigest()[:16]


def mirrored(seed: int, step: int, places: range) -> Tensor:
    """Whether a training mirrors the images at these places of batch `step`."""
    return Draws(seed, places, stream="flip", step=step).uniform() < 0.5


def captioned(seed: int, step: int, places: range, counts: Sequence[int]) -> Tensor:
    """Which of its so many captions a training takes for each row at these places of a batch."""
    chosen = Draws(seed, places, stream="captions", step=step).uniform()
    return (chosen * torch.tensor(counts)).long()


def texts(dataset: Dataset, names: Sequence[str], count: int = 64) -> dict[str, list[str]]:
    """The first texts of these columns, where the dataset has such: what a model is asked for where
    nobody says.
    """
    wanted = [name for name in names if isinstance(dataset.columns.get(name), Text)]
    if not wanted:
        return {}
    found: dict[str, list[str]] = dataset.rows(torch.arange(min(count, len(dataset))), wanted)
    return found


def held_images(
    images: Tensor,
    labels: Tensor | None,
    classes: int,
    ids: Tensor | None = None,
    notes: Mapping[str, str] | None = None,
    flip: bool = False,
    captions: Sequence[str] | None = None,
) -> Held:
    """Images (n, channels, height, width) uint8 in memory, with labels (n,) in 0 … classes - 1 and
    n captions.
    """
    values: dict[str, Tensor | list[str]] = {"image": images}
    if labels is not None:
        values["label"] = labels
    columns = dict(image_space(tuple(images.shape[1:]), 0 if labels is None else classes).columns)
    if captions is not None:
        values["caption"], columns["caption"] = list(captions), Text()
    ids = torch.arange(len(images)) if ids is None else ids
    return Held(values, columns, ids, notes, flip)
