"""The share of samples that show what was asked for, read exactly: for data of drawn shapes."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fewstep.data.shape_reader import Reading, follows, read
from fewstep.metrics.measure import Fault, ImageSet, Measure


@dataclass(frozen=True)
class CaptionAccuracy(Measure):
    """The share of samples in which all that their caption says is true (data=shapes).

    What is to be seen is read by an exact checker, which knows how shapes are drawn. An image that
    could not have been drawn (a blur, half of one object and half of another) follows no caption.
    """

    needs: ClassVar[tuple[str, ...]] = ("caption",)
    name: ClassVar[str] = "caption accuracy"
    unit: ClassVar[str] = "%"
    better: ClassVar[Literal["lower", "higher"]] = "higher"
    digits: ClassVar[int] = 1
    about: ClassVar[str] = "all that the caption says is true of the image (drawn shapes)"
    place: ClassVar[int] = 50
    by_default: ClassVar[bool] = False  # captions of other data say other things
    of_itself: ClassVar[float] = 1.0
    fault: ClassVar[Fault] = "mislabel"

    def __call__(self, samples: ImageSet, reference: ImageSet) -> float:
        captions = samples.columns["caption"]
        right = sum(map(follows, captions, samples.kept(readings)))
        return right / len(captions)


def readings(images: ImageSet) -> list[Reading | None]:
    """What is to be seen in each image."""
    return read(images.images)
