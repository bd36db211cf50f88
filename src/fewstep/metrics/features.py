"""The network in whose features sets of images are compared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from fewstep.choice import Choice, flat
from fewstep.models.classifier import Classifier, find_classifier


class Extracted(NamedTuple):
    """features: (n, dimensions). classes: (n,), the class that each image shows; None where the
    network is no classifier.
    """

    features: Tensor
    classes: Tensor | None = None


class Extractor(ABC):
    """A loaded network. name: with the hash of its weights, by which numbers are told apart.
    classes: how many it tells; 0 where it is no classifier. dimensions: of its features, where that
    is known. label: what distances in them are called by, "" for networks of one's own.
    """

    name: str
    classes: int
    dimensions: int | None = None
    label: str = ""

    @abstractmethod
    def __call__(self, images: Tensor, batch: int = 512) -> Extracted:
        """Of images (n, channels, height, width) in [0, 1]; `batch` at a time."""


class Features(Choice, ABC):
    """Which network it is. A bare string that names no kind is the name or folder of a
    classifier.
    """

    folder: ClassVar[str | None] = "fewstep.metrics"

    @abstractmethod
    def load(self, shape: tuple[int, ...]) -> Extractor:
        """The network, for images of that shape. FileNotFoundError or ValueError with the remedy
        where there is none.
        """

    def channels(self) -> int | None:
        """Of the images that it takes, which are read so; None where it takes any. Errors as
        `load`.
        """
        return None

    @classmethod
    def spelled(cls, value: Any) -> Any:
        value = super().spelled(value)
        known = {flat(name) for name in cls.kinds()}
        kind = value.get("kind") if isinstance(value, Mapping) else None
        if isinstance(kind, str) and flat(kind) not in known:
            return {"kind": "classifier_features", "path": kind}
        return value


@dataclass(frozen=True)
class ClassifierFeatures(Features):
    """The feature layer of a classifier trained on such images."""

    path: str = "digits_classifier"
    """Name of a shipped classifier, or the folder of a run or a model."""

    def channels(self) -> int:
        return int(find_classifier(self.path).shape[0])

    def load(self, shape: tuple[int, ...]) -> Extractor:
        classifier = find_classifier(self.path)
        if tuple(classifier.shape) != tuple(shape):
            raise ValueError(
                f"the classifier {Path(self.path).name} takes images of shape {classifier.shape}, "
                f"these have {tuple(shape)}; train one on your data (recipe mnist_classifier shows "
                "how) and give it as --features"
            )
        return ClassifierExtractor(classifier)


class ClassifierExtractor(Extractor):
    """A loaded classifier."""

    def __init__(self, classifier: Classifier):
        self.classifier = classifier
        self.name, self.classes = f"classifier {classifier.stamp}", classifier.classes
        spec: Any = classifier.network.spec
        self.dimensions = spec.features

    def __call__(self, images: Tensor, batch: int = 512) -> Extracted:
        return Extracted(*self.classifier.measure(images, batch))
