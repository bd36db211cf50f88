"""A measure of a user's own, and features, in one file."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fewstep.metrics.features import Extracted, Extractor, Features
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


@dataclass(frozen=True)
class LabFeatures(Features):
    """Pixels as they are."""

    scale: float = 1.0
    """What they are multiplied by."""

    def load(self, shape):
        return Pixels(self.scale)


class Pixels(Extractor):
    """No network."""

    classes = 0

    def __init__(self, scale):
        self.scale, self.name = scale, f"pixels times {scale:g}"

    def __call__(self, images, batch=512):
        return Extracted(self.scale * images.flatten(1))
