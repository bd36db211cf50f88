"""The mean pixel distance of two samples of one class, relative to that of the reference."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fewstep.metrics.measure import Fault, ImageSet, Measure


@dataclass(frozen=True)
class Diversity(Measure):
    """The mean distance of two samples of one class, relative to that of the reference."""

    needs: ClassVar[tuple[str, ...]] = ("label", "reference.image", "reference.label")
    name: ClassVar[str] = "diversity"
    unit: ClassVar[str] = "%"
    better: ClassVar[Literal["lower", "higher"]] = "higher"
    digits: ClassVar[int] = 1
    about: ClassVar[str] = "mean distance inside a class, relative to the reference's"
    place: ClassVar[int] = 20
    of_itself: ClassVar[float] = 1.0
    fault: ClassVar[Fault] = "collapse"

    def __call__(self, samples: ImageSet, reference: ImageSet) -> float:
        its = reference.kept(_inside_classes)
        if its == 0:
            raise ValueError("the reference has no two unlike images of one class")
        return samples.kept(_inside_classes) / its


def _inside_classes(images: ImageSet) -> float:
    return diversity(images.images, images.labels)


def diversity(images: Tensor, labels: Tensor) -> float:
    """The mean distance of two different images of the same class, over all pairs, then over the
    classes.

    images: (n, …) in [0, 1]; the distance is the root mean square over pixels. Classes of one image
    are left out.
    """
    flat = images.flatten(1).double()
    means = []
    for label in labels.unique():
        group = flat[labels == label]
        if len(group) > 1:
            # Every pair twice, by matrix products: five times as fast as torch.pdist for thousands
            # of images.
            total = sum(torch.cdist(part, group).sum() for part in group.split(1024))
            means.append(total / (len(group) * (len(group) - 1) * flat.shape[1] ** 0.5))
    if not means:
        raise ValueError("diversity needs two images of one class")
    return torch.stack(means).mean().item()
