"""Drawn pictures of coloured shapes with captions that say a part of what is in them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fewstep.choice import Count, Share
from fewstep.data.dataset import Dataset, Held
from fewstep.data.shape_captions import (
    COLOURS,
    LINES,
    OBJECT,
    ONE,
    RELATIONS,
    TWO,
    Description,
    caption_of,
    ends,
)
from fewstep.data.source import Source
from fewstep.diffusion.draws import Draws
from fewstep.models.space import Classes, Column, Image, Space, Text, data_space

SIDE = 32
GREY = 0.5  # of the background: every colour is equally far from it
INK = {
    "red": (0.9, 0.1, 0.1),
    "yellow": (0.9, 0.9, 0.1),
    "green": (0.1, 0.9, 0.1),
    "cyan": (0.1, 0.9, 0.9),
    "blue": (0.1, 0.1, 0.9),
    "magenta": (0.9, 0.1, 0.9),
}
RADII = (3.5, 6.0)  # of circles, small and large, in pixels
CENTRES = (7.0, 16.0, 25.0)  # of the three rows and the three columns
JITTER = 1.0  # both coordinates of a centre are off by up to so many pixels
PART = 250  # pictures drawn at a time


@dataclass(frozen=True)
class Shapes(Source):
    """Captioned 32×32 pictures of coloured shapes, drawn here; picture i depends on (seed, i)
    alone.

    All values of an attribute are equally frequent, and what a caption leaves out is free. Tier
    one: "a small red circle at the top left"; its label is which of all 324 objects it is. Tier
    two: two objects of different colours at opposite ends of a row or a column, "a circle left of a
    blue square"; the relation is always said, the row or column never.
    """

    judge: ClassVar[str | None] = "shapes_classifier"
    measures: ClassVar[tuple[str, ...]] = ("caption_accuracy", "attribute_diversity")

    num: Count = 20_000
    """How many pictures there are, of both splits."""
    seed: int = 0
    """Of the pictures and captions; another seed gives others."""
    tier: Literal["one", "two"] = "one"
    """One object at one of nine places, or two objects and their relation."""
    mention: Share = 0.5
    """Probability that a caption says an attribute."""

    def foreseen(self) -> Space:
        return data_space(self._columns())

    def read(self, beside: Path | None = None) -> Dataset:
        draws = Draws(self.seed, range(self.num), stream=f"shapes {self.tier}")
        if self.tier == "one":
            drawn = {name: draws.integers(len(values)) for name, values in ONE.items()}
            objects = [drawn]
        else:
            drawn, objects = _two(draws)
        offsets = [JITTER * (2 * draws.uniform(2) - 1) for _ in objects]
        images = torch.empty((self.num, 3, SIDE, SIDE), dtype=torch.uint8)
        for rows in torch.arange(self.num).split(PART):
            part = torch.full((len(rows), 3, SIDE, SIDE), GREY, dtype=torch.float64)
            for numbers, offset in zip(objects, offsets, strict=True):
                part += layer({name: n[rows] for name, n in numbers.items()}, offset[rows])
            images[rows] = (255 * part).round().to(torch.uint8)
        values: dict[str, Tensor | list[str]] = {
            "image": images,
            "caption": self._captions(drawn, draws.uniform(len(drawn)) < self.mention),
        }
        if self.tier == "one":
            values["label"] = label_of(drawn)
        notes = {"source": f"drawn shapes, tier {self.tier}"}
        return Held(values, self._columns(), torch.arange(self.num), notes)

    def _captions(self, drawn: Mapping[str, Tensor], said: Tensor) -> list[str]:
        attributes = ONE if self.tier == "one" else TWO
        columns = [drawn[name].tolist() for name in attributes]
        captions = []
        for values, mentioned in zip(zip(*columns, strict=True), said.tolist(), strict=True):
            description: Description = {}
            for name, value, mention in zip(attributes, values, mentioned, strict=True):
                if mention or name == "relation":
                    description[name] = attributes[name][value]
            captions.append(caption_of(description))
        return captions

    def _columns(self) -> dict[str, Column]:
        columns: dict[str, Column] = {"image": Image((3, SIDE, SIDE)), "caption": Text()}
        if self.tier == "one":
            columns["label"] = Classes(math.prod(len(values) for values in ONE.values()))
        return columns


def layer(numbers: Mapping[str, Tensor], offset: Tensor) -> Tensor:
    """What objects add to the grey ground, (n, 3, side, side) float64.

    numbers: of size, colour, shape and place of each, among their values. offset: (n, 2), of the
    centre from that of the place, right and down, in pixels.
    """
    column, row = numbers["place"] % 3, numbers["place"] // 3
    centre = torch.tensor(CENTRES, dtype=torch.float64)[torch.stack([column, row], 1)] + offset
    radius = torch.tensor(RADII, dtype=torch.float64)[numbers["size"]]
    covered = coverage(radius, centre)[numbers["shape"], torch.arange(len(offset))]
    return covered[:, None] * contrasts()[numbers["colour"], :, None, None]


def coverage(radius: Tensor, centre: Tensor) -> Tensor:
    """How far each pixel lies in a circle, a square, a triangle: (3, n, side, side) in [0, 1].

    The edge is a ramp of one pixel of the signed distance to it. radius: (n,), half the width and
    height of all three; their areas are 3.1, 4 and 2 times its square, so that a blur leaves them
    apart. centre: (n, 2). Square roots and float64 alone, so that the bytes are the same on every
    machine.
    """
    pixel = torch.arange(SIDE, dtype=torch.float64) + 0.5
    across = (pixel - centre[:, :1])[:, None, :]
    down = (pixel - centre[:, 1:])[:, :, None]
    radius = radius[:, None, None]
    circle = (across.square() + down.square()).sqrt() - radius
    square = torch.maximum(across.abs(), down.abs()) - radius
    slope = (2 * across.abs() - down - radius) / math.sqrt(5)
    triangle = torch.maximum(slope, down - radius)
    return (0.5 - torch.stack([circle, square, triangle])).clamp(0, 1)


def contrasts() -> Tensor:
    """Of each colour to the ground, (colours, 3); all of the same length."""
    return torch.tensor([INK[name] for name in COLOURS], dtype=torch.float64) - GREY


def label_of(numbers: Mapping[str, Tensor]) -> Tensor:
    """Which of all descriptions of one object it is, (n,)."""
    label = torch.zeros_like(numbers["size"])
    for name, values in ONE.items():
        label = label * len(values) + numbers[name]
    return label


def _two(draws: Draws) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The attributes of two objects, and each object by itself."""
    drawn = {name: draws.integers(len(values)) for name, values in TWO.items()}
    others = draws.integers(len(COLOURS) - 1)
    drawn["second colour"] = (drawn["first colour"] + 1 + others) % len(COLOURS)
    places = [ends(relation, line) for relation in RELATIONS for line in LINES]
    place = torch.tensor(places)[drawn["relation"] * len(LINES) + drawn["line"]]
    objects = []
    for number, which in enumerate(("first", "second")):
        one = {name: drawn[f"{which} {name}"] for name in OBJECT}
        objects.append({**one, "place": place[:, number]})
    return drawn, objects
