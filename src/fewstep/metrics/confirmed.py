"""The share of samples in which a classifier sees the class that was asked for."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fewstep.metrics.measure import Fault, ImageSet, Measure


@dataclass(frozen=True)
class Confirmed(Measure):
    """The share of samples in which the classifier sees the class that was asked for."""

    needs: ClassVar[tuple[str, ...]] = ("label", "reference.label", "classes")
    name: ClassVar[str] = "confirmed"
    unit: ClassVar[str] = "%"
    better: ClassVar[Literal["lower", "higher"]] = "higher"
    digits: ClassVar[int] = 1
    about: ClassVar[str] = "the classifier sees the class that was asked for"
    place: ClassVar[int] = 10
    of_itself: ClassVar[float] = 1.0
    fault: ClassVar[Fault] = "mislabel"

    def __call__(self, samples: ImageSet, reference: ImageSet) -> float:
        seen = samples.extracted.classes
        assert seen is not None
        return (seen == samples.labels).double().mean().item()
