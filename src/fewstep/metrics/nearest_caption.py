"""The share of samples whose nearest reference image has the caption that was asked for."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fewstep.metrics.authenticity import neighbours
from fewstep.metrics.measure import Fault, ImageSet, Measure


@dataclass(frozen=True)
class NearestCaption(Measure):
    """The share of samples of which the nearest reference image, pixel by pixel, has the caption
    that was asked for.

    Of an image with several captions each will do. Sharpness is not looked at: a blur of the right
    image is right, as long as no other one is nearer to it. A caption that the reference does not
    have is never right.
    """

    needs: ClassVar[tuple[str, ...]] = ("caption", "reference.image", "reference.captions")
    name: ClassVar[str] = "nearest has caption"
    unit: ClassVar[str] = "%"
    better: ClassVar[Literal["lower", "higher"]] = "higher"
    digits: ClassVar[int] = 1
    about: ClassVar[str] = "the nearest reference image, in pixels, has the caption"
    place: ClassVar[int] = 70
    by_default: ClassVar[bool] = False  # where captions say little, many images are right
    of_itself: ClassVar[float] = 1.0
    fault: ClassVar[Fault] = "mislabel"

    def __call__(self, samples: ImageSet, reference: ImageSet) -> float:
        theirs, known = reference.images.flatten(1).double(), reference.columns["captions"]
        _, places = neighbours(samples.images.flatten(1).double(), theirs)
        captions = samples.columns["caption"]
        right = [caption in known[i] for caption, i in zip(captions, places.tolist(), strict=True)]
        return sum(right) / len(right)
