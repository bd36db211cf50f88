"""A small classifier: the features in which samples are compared, and the judge of their
classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.choice import Choice, Count, Share
from fewstep.files import new_folder, save_tensors, sha256, write_json
from fewstep.finite import check_saved
from fewstep.models.codec import CodecModule, Pixels
from fewstep.models.conditioner import ConditionerModule, Labels
from fewstep.models.described import errors_of
from fewstep.models.folder import FORMAT, WEIGHTS, check_card, filled, read_description, shape_of
from fewstep.models.foreign import foreign
from fewstep.models.named import shipped_folder
from fewstep.models.part import Part
from fewstep.models.source import ModelSource
from fewstep.models.space import Space
from fewstep.text import place


@dataclass(frozen=True)
class ClassifierNetwork(Choice):
    """Three 3×3 convolutions, two of them of stride 2, a feature layer, a linear layer."""

    channels: Count = 32
    """Channels of the first convolution; the others have twice as many."""
    features: Count = 64
    """Width of the feature layer, in which distances are measured."""
    dropout: Share = 0.2
    """Share of the features that is left out in training."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The module, for images of that shape."""
        return ClassifierModule(self, shape, classes)


class ClassifierModule(nn.Module):
    """`features(x)`: (batch, features); `forward(x)`: class logits; x in model space."""

    def __init__(self, spec: ClassifierNetwork, shape: tuple[int, ...], classes: int):
        super().__init__()
        self.spec = spec
        c = spec.channels
        self.body = nn.Sequential(
            nn.Conv2d(shape[0], c, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(c, 2 * c, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.Conv2d(2 * c, 2 * c, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * c, spec.features),
            nn.SiLU(),
        )
        self.head = nn.Sequential(nn.Dropout(spec.dropout), nn.Linear(spec.features, classes))

    def features(self, x: Tensor) -> Tensor:
        """The feature layer."""
        return self.body(x)

    def stages(self, x: Tensor) -> list[Tensor]:
        """What comes out of each activation: maps (batch, channels, height, width), at last the
        feature layer.
        """
        found = []
        for layer in self.body:
            x = layer(x)
            if isinstance(layer, nn.SiLU):
                found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@dataclass(eq=False)
class Classifier(Part):
    """A classifier with what is needed to use and save it; `stamp`
    identifies it in every result.
    """

    network: nn.Module
    shape: tuple[int, ...]
    classes: int
    card: dict[str, Any] = field(default_factory=dict)
    stamp: str = ""
    codec: CodecModule = field(default_factory=lambda: Pixels().build())

    @property
    def conditioner(self) -> ConditionerModule:
        """Labels as they are."""
        return Labels(self.classes, null=False).build()

    @torch.no_grad()
    def measure(self, images: Tensor, batch: int = 512) -> tuple[Tensor, Tensor]:
        """(features, predicted classes) of images in [0, 1], (n, channels, height, width)."""
        if tuple(images.shape[1:]) != tuple(self.shape):
            raise ValueError(
                f"the classifier takes images of shape {self.shape}, got {tuple(images.shape[1:])}"
            )
        self.network.eval()
        found = [self._measure(part) for part in images.split(batch)]
        return torch.cat([f for f, _ in found]), torch.cat([c for _, c in found])

    def _measure(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(self.network, ClassifierModule)
        features = self.network.features(self.codec.encode(images))
        return features, self.network.head(features).argmax(1)

    def save(self, folder: Path) -> None:
        assert isinstance(self.network, ClassifierModule)
        check_saved(self.network.state_dict(), dict(self.network.named_buffers()))
        with new_folder(Path(folder)) as beside:
            save_tensors(beside / WEIGHTS, self.network.state_dict())
            described = {
                "format": FORMAT,
                "classifier": self.network.spec.dump(),
                "shape": list(self.shape),
                "classes": self.classes,
                "weights": {WEIGHTS: sha256(beside / WEIGHTS)},
                "card": self.card,
            }
            write_json(beside / "model.json", described)

    @classmethod
    def load(cls, folder: Path) -> Classifier:
        return load_classifier(folder)


def load_classifier(folder: Path) -> Classifier:
    """The classifier saved in a model's or a run's folder. FileNotFoundError, ValueError where
    there is none.
    """
    folder = folder / "student" if (folder / "student" / "model.json").is_file() else folder
    if not (folder / "model.json").is_file():
        reason = foreign(folder) or f"{folder} holds no classifier: it has no model.json"
        raise FileNotFoundError(reason)
    described = read_description(
        folder / "model.json", "classifier", f"{folder} holds no classifier"
    )
    with errors_of(folder / "model.json"):
        return _described(folder, described)


def find_classifier(name: str | Path) -> Classifier:
    """The classifier of that folder, or the shipped one of that name.
    Errors as `load_classifier`.
    """
    folder = place(name)
    return load_classifier(folder if folder.exists() else shipped_folder(name))


def _described(folder: Path, described: dict[str, Any]) -> Classifier:
    shape, classes = shape_of(described), described["classes"]
    check_card(described)
    if type(classes) is not int or classes < 1:
        raise ValueError(f"classes must be a whole number from 1 on, got {str(classes)[:80]}")
    spec = ClassifierNetwork.parse(described["classifier"])
    network = filled(folder, described, WEIGHTS, spec, lambda: spec.build(shape, classes))
    network.eval().requires_grad_(False)
    return Classifier(
        network, shape, classes, described["card"], described["weights"][WEIGHTS][:16]
    )


@dataclass(frozen=True)
class FreshClassifier(ModelSource):
    """A new classifier, initialised under the run's seed."""

    network: ClassifierNetwork = field(default_factory=ClassifierNetwork)
    """The classifier's size."""

    def load(self, data: Space, seed: int) -> Classifier:
        if not data.classes or "image" not in data.columns:
            raise ValueError("a classifier needs labelled images")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.network.build(data.shape, data.classes)
        return Classifier(network, data.shape, data.classes)
