"""What data, model and network must agree on: the shape of a sample and the columns beside it."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, field

from fewstep.choice import Choice, Count


class Column(Choice, ABC):
    """What one entry of a named column is: of a row of data, or of a condition."""


@dataclass(frozen=True)
class Image(Column):
    """A picture, uint8 of this shape (channels, height, width)."""

    shape: tuple[int, ...] = ()
    """Of one picture: channels, height, width."""


@dataclass(frozen=True)
class Vectors(Column):
    """Floats of this shape: a latent, an embedding, the states of a text encoder."""

    shape: tuple[int, ...] = ()
    """Of one entry."""


@dataclass(frozen=True)
class Moments(Column):
    """What a codec knows of a picture before it draws a latent from it: floats of this shape."""

    shape: tuple[int, ...] = ()
    """Of one entry."""
    latent: tuple[int, ...] = ()
    """Of a latent."""


@dataclass(frozen=True)
class Classes(Column):
    """A whole number 0 … num - 1."""

    num: Count = 1
    """How many classes there are."""
    null: bool = False
    """Whether one number more, `num` itself, means "any class"."""


@dataclass(frozen=True)
class Text(Column):
    """A line of text."""


@dataclass(frozen=True)
class Texts(Column):
    """Several lines of text, one of which training draws each time."""


@dataclass(frozen=True)
class Space:
    """The shape of a sample, and the columns that stand beside it.

    Of data: the shape is that of its `latent`, of what is drawn from its `moments`, or of its
    `image`; () where it has none of them (prompts only). Of a network: the shape of x, and the
    columns of the condition that it reads.
    """

    shape: tuple[int, ...] = ()
    columns: Mapping[str, Column] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """The number of classes; 0 where there are no labels."""
        label = self.columns.get("label")
        return label.num if isinstance(label, Classes) else 0

    @property
    def encoded(self) -> bool:
        """Whether the samples of data are in model space, as a codec makes them."""
        return "latent" in self.columns or "moments" in self.columns


def labelled(shape: tuple[int, ...], classes: int = 0, null: bool = False) -> Space:
    """Samples of this shape with class labels (0 classes: without)."""
    return Space(shape, {"label": Classes(classes, null)} if classes else {})


def data_space(columns: Mapping[str, Column]) -> Space:
    """The space of rows with these columns."""
    sample = columns.get("latent") or columns.get("moments") or columns.get("image")
    shape = sample.shape if isinstance(sample, Image | Vectors) else ()
    if isinstance(sample, Moments):
        shape = sample.latent
    return Space(tuple(shape), columns)


def image_space(shape: tuple[int, ...], classes: int = 0) -> Space:
    """The space of pictures of this shape, with class labels (0 classes: without)."""
    columns: dict[str, Column] = {"image": Image(tuple(shape))}
    if classes:
        columns["label"] = Classes(classes)
    return data_space(columns)


def described(columns: Mapping[str, Column]) -> str:
    """Columns in words, for messages."""
    words = []
    for name, column in columns.items():
        if isinstance(column, Classes):
            words.append(f"{name} ({column.num} classes)")
        elif isinstance(column, Image | Vectors | Moments):
            words.append(f"{name} ({'×'.join(map(str, column.shape))})")
        else:
            words.append(name)
    return ", ".join(words) or "nothing"
