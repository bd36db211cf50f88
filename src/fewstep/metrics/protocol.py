"""The protocol under which numbers were measured; unlike ones are not compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fewstep.finite import check_images
from fewstep.metrics.measure import Scale

ROUNDING = "uint8, round(255 x)"

# What makes numbers unlike, in words. The other fields say how these samples came to be.
UNLIKE = {
    "features": "features",
    "reference": "reference",
    "reference_images": "reference images",
    "resolution": "resolution",
    "num": "number of samples",
    "rounding": "rounding",
    "teacher": "teacher",
}


@dataclass(frozen=True)
class Protocol:
    """How samples were measured, and how they were made.

    features: the network and the hash of its weights; None where no measure needed one. reference:
    the fingerprint of its images; split: which part of a data set it is, "" if that was not said.
    resolution: of the samples, (channels, height, width). num: the number of samples. measures: how
    the value of each kind is read. left_out: measures that nobody chose and that could not be
    taken, with the reason. undefined: measures that have no value for these images, with the
    reason. teacher: the hash of its weights and how it samples, where samples were
    compared with its. guidance, sampler, ema, seed: of sampled models; tried: the solvers of which
    this one was the best. dimensions: of the features. intervals: half the width of a value's 95 %
    interval, by kind, of measures that know one. unknown: what a newer fewstep wrote beside these.
    """

    features: str | None
    reference: str
    reference_images: int
    resolution: tuple[int, ...]
    num: int
    measures: Mapping[str, Scale]
    left_out: Mapping[str, str] = field(default_factory=dict)
    undefined: Mapping[str, str] = field(default_factory=dict)
    rounding: str = ROUNDING
    split: str = ""
    seed: int | None = None
    guidance: float | None = None
    sampler: Mapping[str, Any] | None = None
    tried: tuple[str, ...] = ()
    ema: float | None = None
    teacher: str | None = None
    dimensions: int | None = None
    intervals: Mapping[str, float] = field(default_factory=dict)
    unknown: Mapping[str, Any] = field(default_factory=dict)

    def differs(self, other: Protocol) -> list[str]:
        """Each difference that forbids to compare numbers, in words; none where they are alike."""
        found = []
        for name, words in UNLIKE.items():
            mine, theirs = getattr(self, name), getattr(other, name)
            if name in ("features", "teacher") and None in (mine, theirs):
                continue  # what both measured was measured without
            if mine != theirs:
                found.append(f"{words}: {_word(mine)} against {_word(theirs)}")
        common = [kind for kind in self.measures if kind in other.measures]
        if not common:
            found.append(f"measures: {_list(self.measures)} against {_list(other.measures)}")
        for kind in common:
            one, another = self.measures[kind], other.measures[kind]
            if one.options != another.options:
                found.append(f"options of {kind}: {one.options} against {another.options}")
            if one.source != another.source:
                found.append(f"source of {kind}: {_source(one)} against {_source(another)}")
        for name in dict.fromkeys([*self.unknown, *other.unknown]):
            if name not in self.unknown or name not in other.unknown:
                found.append(f"{name}: in one alone, and unknown to this fewstep")
            elif self.unknown[name] != other.unknown[name]:
                found.append(f"{name}: {self.unknown[name]} against {other.unknown[name]}")
        return found

    @property
    def warning(self) -> str:
        """What a Fréchet distance does not say of so few images; '' where there are enough."""
        fewest = min(self.num, self.reference_images)
        if "frechet" not in self.measures or not is_few(fewest, self.dimensions):
            return ""
        return (
            f"{fewest:,} images in {self.dimensions:,} dimensions: their number makes most of a "
            "Fréchet distance; compare it with none of another number, read the kernel distance"
        )

    def told(self) -> dict[str, str]:
        """What a reader of a table should know, in words."""
        split = f", split {self.split}" if self.split else ""
        left_out = [f"{kind} ({reason})" for kind, reason in self.left_out.items()]
        undefined = [f"{kind} ({reason})" for kind, reason in self.undefined.items()]
        facts: dict[str, Any] = {
            "features": self.features,
            "reference": f"{self.reference} ({self.reference_images:,} images{split})",
            "resolution": _word(self.resolution),
            "samples": f"{self.num:,}",
            "rounding": self.rounding,
            "seed": self.seed,
            "guidance": self.guidance,
            "average": self.ema,
            "teacher": self.teacher,
            "best of": ", ".join(self.tried),
            "left out": "; ".join(left_out),
            "undefined": "; ".join(undefined),
            "warning": self.warning,
            **{f"{name} (unknown to this fewstep)": value for name, value in self.unknown.items()},
        }
        return {name: str(fact) for name, fact in facts.items() if fact not in (None, "")}

    def plain(self) -> dict[str, Any]:
        """For JSON; what is unknown stands beside the rest, where it was found."""
        values = dataclasses.asdict(self)
        unknown = values.pop("unknown")
        return values | unknown

    @staticmethod
    def of_plain(plain: Mapping[str, Any]) -> Protocol:
        """What `plain` wrote, this fewstep's or a newer one's. ValueError where it is damaged."""
        from pydantic import TypeAdapter

        names = {one.name for one in dataclasses.fields(Protocol)} - {"unknown"}
        known = {name: value for name, value in plain.items() if name in names}
        unknown = {name: value for name, value in plain.items() if name not in names}
        return TypeAdapter(Protocol).validate_python(known | {"unknown": unknown})


def is_few(images: int, dimensions: int | None) -> bool:
    """Whether so few images are no more than the dimensions of their features."""
    return dimensions is not None and images <= dimensions


def rounded(images: Tensor) -> Tensor:
    """Images as a file of 8 bits holds them. NotFiniteError."""
    check_images(images)
    return (images * 255).round() / 255


def _word(value: Any) -> str:
    return "×".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _source(scale: Scale) -> str:
    return scale.source or "fewstep"


def _list(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "none"
