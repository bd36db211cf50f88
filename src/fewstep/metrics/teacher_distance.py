"""The mean pixel distance of samples to a teacher's of the same noise and condition."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fewstep.metrics.measure import ImageSet, Measure


@dataclass(frozen=True)
class TeacherDistance(Measure):
    """The mean distance of a sample to the teacher's of the same noise and condition."""

    needs: ClassVar[tuple[str, ...]] = ("teacher",)
    name: ClassVar[str] = "distance to teacher"
    digits: ClassVar[int] = 3
    about: ClassVar[str] = "root mean square over pixels, to the teacher's sample of the same noise"
    place: ClassVar[int] = 40
    by_default: ClassVar[bool] = False  # a teacher has to be named, and sampled too

    def __call__(self, samples: ImageSet, reference: ImageSet) -> float:
        teacher: Tensor = samples.columns["teacher"]
        difference = (samples.images - teacher).double().flatten(1)
        return difference.square().mean(1).sqrt().mean().item()
