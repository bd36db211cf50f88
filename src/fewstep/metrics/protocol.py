"""Quality numbers with the protocol under which they were measured; unlike protocols are not
compared.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.data.dataset import Dataset
from fewstep.data.source import check_labels
from fewstep.metrics.diversity import diversity
from fewstep.metrics.frechet import frechet_distance
from fewstep.models.classifier import Classifier, find_classifier

ROUNDING = "uint8, round(255 x)"


@dataclass(frozen=True, eq=False)
class Reference:
    """The images that others are compared with, in the features of one classifier."""

    judge: Classifier
    images: Tensor
    labels: Tensor
    features: Tensor
    stamp: str

    @functools.cached_property
    def diversity(self) -> float:
        """Of the reference itself."""
        return diversity(self.images, self.labels)

    @staticmethod
    def of(dataset: Dataset, judge: Classifier) -> Reference:
        """The reference made of a labelled dataset. ValueError where shapes or classes do not fit
        the judge.
        """
        if dataset.labels is None or dataset.classes != judge.classes:
            raise ValueError(
                f"the reference needs labels of {judge.classes} classes, like the classifier's"
            )
        images = dataset.floats()
        return Reference(
            judge, images, dataset.labels, judge.measure(images)[0], dataset.fingerprint()
        )

    def quality(self, images: Tensor, labels: Tensor | None, **protocol: Any) -> dict[str, Any]:
        """frechet, confirmed and diversity (fractions; None without labels) of images in [0, 1],
        and the protocol.
        """
        if labels is not None:
            if labels.shape != images.shape[:1]:
                raise ValueError(f"{len(labels)} labels for {len(images)} images")
            check_labels(labels, self.judge.classes, "labels")
        images = rounded(images)
        features, seen = self.judge.measure(images)
        if labels is None:
            confirmed, spread = None, None
        else:
            confirmed = (seen == labels).double().mean().item()
            spread = diversity(images, labels) / self.diversity
        stamp = {
            "extractor": f"classifier {self.judge.stamp}",
            "reference": self.stamp,
            "reference_images": len(self.images),
            "num": len(images),
            "rounding": ROUNDING,
        }
        return {
            "frechet": frechet_distance(features, self.features),
            "confirmed": confirmed,
            "diversity": spread,
            "protocol": stamp | protocol,
        }


def rounded(images: Tensor) -> Tensor:
    """Images as a file of 8 bits holds them."""
    return (images * 255).round() / 255


def comparable(a: dict[str, Any], b: dict[str, Any]) -> str | None:
    """None where two protocols may be compared, else the first difference that forbids it."""
    for key in ("extractor", "reference", "reference_images", "num", "rounding"):
        if a.get(key) != b.get(key):
            return f"{key}: {a.get(key)} against {b.get(key)}"
    return None


def find_judge(name: str | Path | None, shape: tuple[int, ...]) -> Classifier:
    """The classifier of that folder or shipped name; None: the shipped one for images of that
    shape.
    """
    name = name or "digits_classifier"
    judge = find_classifier(name)
    if tuple(judge.shape) != tuple(shape):
        raise ValueError(
            f"the classifier {Path(name).name} takes images of shape {judge.shape}, these have "
            f"{tuple(shape)}; "
            "train one on your data (recipe mnist_classifier shows how) and give it as --features"
        )
    return judge
