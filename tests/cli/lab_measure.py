"""A measure of a user's own, in one file."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fewstep.metrics.measure import Measure


@dataclass(frozen=True)
class LabBrightness(Measure):
    """The mean grey value, relative to the reference's."""

    name: ClassVar[str] = "brightness"
    unit: ClassVar[str] = "permille"
    better: ClassVar[Literal["lower", "higher"]] = "higher"
    digits: ClassVar[int] = 3
    about: ClassVar[str] = "mean grey value, relative to the reference's"

    power: float = 1.0
    """Of the grey values, before their mean is taken."""

    def __call__(self, samples, reference):
        mean, its = ((one.images**self.power).mean() for one in (samples, reference))
        return (1000 * mean / its).item()
