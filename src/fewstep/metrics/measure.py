"""A measure is one number that says how good a set of images is; a new one is one file here.

    @dataclass(frozen=True)
    class Brightness(Measure):
        \"\"\"How far the mean grey value is from the reference's.\"\"\"

        name: ClassVar[str] = "brightness"
        about: ClassVar[str] = "difference of the mean grey values"

        def __call__(self, samples, reference):
            return abs(samples.images.mean() - reference.images.mean()).item()

It is then measured, printed, written, reported, compared and tested as the others are.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from fewstep import plugins
from fewstep.choice import Choice, kind_of
from fewstep.metrics.features import Extracted, Extractor

T = TypeVar("T")
Fault = Literal["noise", "collapse", "mislabel", "copies"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and what stands beside them, row by row.

    columns: image, (n, channels, height, width) in [0, 1]; label, (n,) int64; caption, n texts;
    captions, all of each row, n tuples of texts; teacher, as image: what a teacher makes of the
    same noise and conditions. extractor: the network whose features are compared. classes: the
    number of classes of the labels, 0 without labels.
    """

    columns: Mapping[str, Any]
    extractor: Extractor | None = None
    classes: int = 0
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def images(self) -> Tensor:
        """(n, channels, height, width) in [0, 1]."""
        images: Tensor = self.columns["image"]
        return images

    @property
    def labels(self) -> Tensor:
        """(n,) int64."""
        labels: Tensor = self.columns["label"]
        return labels

    @functools.cached_property
    def extracted(self) -> Extracted:
        """What the extractor sees in the images."""
        assert self.extractor is not None
        return self.extractor(self.images)

    @property
    def features(self) -> Tensor:
        """(n, dimensions), of the extractor."""
        return self.extracted.features

    def kept(self, function: Callable[[ImageSet], T]) -> T:
        """function(self), worked out once: for what a measure needs of the reference every time."""
        if function not in self._kept:
            self._kept[function] = function(self)
        found: T = self._kept[function]
        return found


class Estimate(NamedTuple):
    """A value, and half the width of its 95 % interval, where one is known."""

    value: float
    half: float | None = None


@dataclass(frozen=True)
class Scale:
    """How the values of a measure are read; stands in every result, which so explains itself.

    source: the plug-in that it is from, "" for fewstep's own.
    """

    name: str
    unit: str = ""
    better: Literal["lower", "higher"] = "lower"
    digits: int = 2
    about: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    # Of files: a key that a newer fewstep wrote is named, not passed over.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    @property
    def heading(self) -> str:
        """The head of a column: its name, unit and the direction in which it is better."""
        unit = f" in {self.unit}" if self.unit not in ("", "%") else ""
        return f"{self.name}{unit} {'↓' if self.better == 'lower' else '↑'}"

    def shown(self, value: float | None, half: float | None = None) -> str:
        """A value in a table, with its interval; nothing where it was not measured."""
        if value is None:
            return ""
        if half is not None and half > 0:
            places = max(0, 1 - math.floor(math.log10(half)))  # two digits of the interval
            return f"{value:.{places}f} ± {half:.{places}f}"
        if self.unit == "%":
            return f"{value:.{self.digits}%}"
        fixed = f"{value:.{self.digits}f}"
        # Where nearly all digits would be zeros, as many that are not.
        few = self.digits > 0 and value != 0 and abs(value) < 10.0 ** (1 - self.digits)
        return f"{value:.3g}" if few else fixed

    def rank(self, value: float) -> float:
        """A number that is the smaller the better the value is."""
        return value if self.better == "lower" else -value


class Measure(Choice, ABC):
    """A number for a set of images.

    needs: what it compares, of the samples ("label", "caption", "teacher") and of the reference
    ("reference.image", "reference.label", "reference.captions" …); "features": an extractor;
    "classes": one that tells the reference's classes. Where one is not there the measure is left
    out. uses: columns, named in the same way, that it reads where they are there. unit: "%" where
    values are fractions. about: half a sentence, for reports. place: its place in tables; what is
    measured in the first place decides which of several results is best. by_default: whether it is
    measured where nobody chose. of_itself: its value for the reference itself, to an extractor that
    is never wrong; None where that means nothing. short: what it is called beside the label of the
    features, where these have one. fault: what makes it worse, the more images have it (noise;
    copies of one sample; labels of another class; copies of reference images).
    """

    folder: ClassVar[str | None] = "fewstep.metrics"

    needs: ClassVar[tuple[str, ...]] = ("reference.image",)
    uses: ClassVar[tuple[str, ...]] = ()
    name: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    better: ClassVar[Literal["lower", "higher"]] = "lower"
    digits: ClassVar[int] = 2
    about: ClassVar[str] = ""
    place: ClassVar[int] = 100
    by_default: ClassVar[bool] = True
    of_itself: ClassVar[float | None] = 0.0
    short: ClassVar[str] = ""
    fault: ClassVar[Fault] = "noise"

    @abstractmethod
    def __call__(self, samples: ImageSet, reference: ImageSet) -> float:
        """The value. ValueError with the reason where it is undefined for these images, as where
        there are too few: then it is left out, and told.
        """

    def estimate(self, samples: ImageSet, reference: ImageSet) -> Estimate:
        """The value, with its interval where the measure knows one. ValueError as of the call."""
        return Estimate(self(samples, reference))

    def value(self, samples: ImageSet, reference: ImageSet) -> Estimate:
        """The estimate, in finite numbers. ValueError where there is none."""
        try:
            estimate = self.estimate(samples, reference)
            found = float(estimate.value)
        except (ArithmeticError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            raise ValueError(f"it cannot be computed ({error})") from error
        if not math.isfinite(found):
            raise ValueError(f"it is {found}, no number")
        return Estimate(found, estimate.half)

    def missing(self, columns: Collection[str], reference: ImageSet) -> str | None:
        """Why it cannot be measured on samples with these columns; None where it can."""
        for need in self.needs:
            owner, _, column = need.rpartition(".")
            extractor = reference.extractor
            if need in ("features", "classes") and extractor is None:
                return "there is no network for features"
            if need == "features":
                continue
            if need == "classes":
                assert extractor is not None
                if extractor.classes != reference.classes:
                    told = extractor.classes or "no"
                    return f"{extractor.name} tells {told} classes, not {reference.classes}"
            elif column not in (reference.columns if owner else columns):
                verb = "has" if owner else "have"
                return f"the {owner or 'samples'} {verb} no {column.removesuffix('s')}s"
        return None

    def scale(self, label: str = "") -> Scale:
        """How its values are read. label: of the features."""
        kind = kind_of(type(self))
        options = {key: value for key, value in self.dump().items() if key != "kind"}
        name = self.name or kind.replace("_", " ")
        if label and self.short:
            name = f"{self.short}_{label}"
        source = plugins.origin(type(self)) or ""
        return Scale(name, self.unit, self.better, self.digits, self.about, options, source)


def measures_by_default(also: Sequence[Measure] = ()) -> list[Measure]:
    """All that are measured where nobody chose, and these, in the order of tables."""
    found = [*(kind() for kind in Measure.kinds().values() if kind.by_default), *also]
    return sorted(found, key=lambda measure: measure.place)
