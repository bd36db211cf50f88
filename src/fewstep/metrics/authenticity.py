"""Memorisation: the share of samples that are no near copies of a reference image."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fewstep.metrics.measure import Fault, ImageSet, Measure


@dataclass(frozen=True)
class Authenticity(Measure):
    """The share of samples that are no near copies (Alaa et al. 2022, arXiv:2102.08921).

    A sample is authentic if its nearest reference image has another reference image nearer to it
    than the sample is, in features. Copies give 0 %. Samples of the reference's own distribution
    do not give 100 % (in one dimension a third): compare with unseen images. The reference must be
    what the model was trained on.
    """

    needs: ClassVar[tuple[str, ...]] = ("features", "reference.image")
    name: ClassVar[str] = "authentic"
    unit: ClassVar[str] = "%"
    better: ClassVar[Literal["lower", "higher"]] = "higher"
    digits: ClassVar[int] = 1
    about: ClassVar[str] = "no near copies of reference images; to be compared with unseen images"
    place: ClassVar[int] = 30
    by_default: ClassVar[bool] = False  # all pairs of the reference: dear for large ones
    fault: ClassVar[Fault] = "copies"

    def __call__(self, samples: ImageSet, reference: ImageSet) -> float:
        distance, place = neighbours(samples.features.double(), reference.features.double())
        return (distance > reference.kept(_own_distances)[place]).double().mean().item()


def _own_distances(images: ImageSet) -> Tensor:
    """Of each image to the nearest other one of the set, in features."""
    features = images.features.double()
    return neighbours(features, features)[0]


def neighbours(a: Tensor, b: Tensor, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """For each row of (n, d) the Euclidean distance to the nearest row of (m, d), and its place.

    Where `b` is `a` itself, to the nearest other one. ValueError where there is no other.
    """
    place = 1 if b is a else 0
    if len(b) <= place:
        raise ValueError(f"no nearest neighbour among {len(b)} images")
    distances, places = [], []
    for part in a.split(chunk):
        nearest = torch.cdist(part, b).topk(place + 1, largest=False)
        distances.append(nearest.values[:, place])
        places.append(nearest.indices[:, place])
    return torch.cat(distances), torch.cat(places)


def nearest(images: Tensor, reference: Tensor, chunk: int = 1024) -> Tensor:
    """For each image the root-mean-square pixel distance to the nearest of the reference, (n,).

    Where `reference` is `images` itself, to the nearest other one.
    """
    a = images.flatten(1).double()
    b = a if reference is images else reference.flatten(1).double()
    return neighbours(a, b, chunk)[0] / a.shape[1] ** 0.5
