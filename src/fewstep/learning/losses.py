"""Distances between two batches of samples, one number per sample."""

import functools
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.choice import Choice, NonNegative, Positive, Share
from fewstep.diffusion.types import Sample, Time
from fewstep.models.classifier import Classifier, ClassifierModule, find_classifier


class Distance(Choice, ABC):
    """d(a, b) per sample, (batch,), zero for equal samples."""

    @abstractmethod
    def __call__(self, a: Sample, b: Sample) -> Time:
        """The distance of each row of a from the same row of b."""


@dataclass(frozen=True)
class Squared(Distance):
    """Mean over the elements of (a - b)². Papers write the sum; official code takes the mean."""

    def __call__(self, a: Sample, b: Sample) -> Time:
        return (a - b).square().flatten(1).mean(1)


@dataclass(frozen=True)
class Absolute(Distance):
    """Mean over the elements of |a - b|."""

    def __call__(self, a: Sample, b: Sample) -> Time:
        return (a - b).abs().flatten(1).mean(1)


@dataclass(frozen=True)
class PseudoHuber(Distance):
    """√(‖a - b‖² + c²) - c over the whole sample (Song & Dhariwal 2023, arXiv:2310.14189).

    c = scale·√d with d elements, so that a scale means the same at every resolution. scale = 0 is
    the plain norm, whose gradient has length 1 whatever the error; at a = b it is given the
    gradient 0.
    """

    scale: NonNegative = 0.00054
    """c = scale·√d for d elements; 0 is the plain norm."""

    def __call__(self, a: Sample, b: Sample) -> Time:
        difference = (a - b).flatten(1)
        if self.scale == 0:
            return torch.linalg.vector_norm(difference, dim=1)
        c = self.scale * difference.shape[1] ** 0.5
        square = difference.square().sum(1)
        # √(square + c²) - c without its cancellation.
        return square / (torch.sqrt(square + c * c) + c)


@dataclass(frozen=True)
class Huber(Distance):
    """Mean over the elements of √((a - b)² + c²) - c, as latent consistency models use it
    (arXiv:2310.04378).

    Far above c it is the mean absolute error, far below half the squared one over c. It is not
    `PseudoHuber`, which takes one root of the whole sample.
    """

    c: Positive = 0.001
    """The error below which the distance is quadratic."""

    def __call__(self, a: Sample, b: Sample) -> Time:
        square = (a - b).square().flatten(1)
        # √(square + c²) - c without its cancellation.
        each = square / (torch.sqrt(square + self.c**2) + self.c)
        return each.mean(1)


@dataclass(frozen=True)
class AdaptivePower(Distance):
    """S/sg(S + c)^power with S the sum over the elements of (a - b)²: mean flow's weight
    (arXiv:2505.13447).

    power 0 is the plain sum; power 1 bounds the gradient's length by 1/√c and makes samples of all
    errors count alike.
    """

    power: Share = 0.75
    """The power of the adaptive weight, 0 (plain squared error) … 1."""
    c: Positive = 1e-3
    """Added to the squared error before the power is taken."""

    def __call__(self, a: Sample, b: Sample) -> Time:
        square = (a - b).square().flatten(1).sum(1)
        return square / (square.detach() + self.c) ** self.power


@dataclass(frozen=True)
class Lpips(Distance):
    """LPIPS with VGG-16 (Zhang et al. 2018, arXiv:1801.03924), computed by a package of the user's
    own installation.

    package: "piq", with average pooling as in the official code of consistency models; "lpips", of
    LPIPS's authors. Samples are images in [-1, 1]; grey ones get three equal channels, those whose
    shorter side is less than 256 are resized so that it has 224, whatever their shape.
    """

    package: Literal["piq", "lpips"] = "piq"
    """The installed package that computes it."""

    def __call__(self, a: Sample, b: Sample) -> Time:
        return _lpips(self.package, a.device)(self._fitted(a), self._fitted(b)).flatten()

    def _fitted(self, x: Sample) -> Tensor:
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(
                f"lpips compares images of 1 or 3 channels, not samples of shape "
                f"{tuple(x.shape[1:])}"
            )
        x = x.float().expand(-1, 3, -1, -1)
        height, width = x.shape[-2:]
        if (shorter := min(height, width)) < 256:
            size = round(224 * height / shorter), round(224 * width / shorter)
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return (x + 1) / 2 if self.package == "piq" else x


@functools.cache
def _lpips(package: str, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """The package's frozen network, one per device and process."""
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"the distance lpips needs the package {package} ({error}): pip install {package}"
        ) from None
    made = (
        module.LPIPS(replace_pooling=True, reduction="none")
        if package == "piq"
        else module.LPIPS(net="vgg")
    )
    return _frozen(made, device)


@dataclass(frozen=True)
class Features(Distance):
    """Distance in the features of a saved classifier: its folder, or the name of a shipped one. It
    is not LPIPS.

    The sum over the classifier's stages of the mean over positions of ‖a/|a| - b/|b|‖², the norms
    over the channels.
    """

    classifier: str = "digits_classifier"
    """Folder of a saved classifier, or the name of a shipped one."""

    def __call__(self, a: Sample, b: Sample) -> Time:
        judge = _judge(self.classifier, a.device)
        if tuple(a.shape[1:]) != tuple(judge.shape):
            raise ValueError(
                f"the classifier {self.classifier} takes {judge.shape}, not {tuple(a.shape[1:])}"
            )
        assert isinstance(judge.network, ClassifierModule)
        total = torch.zeros(len(a), device=a.device)
        for x, y in zip(judge.network.stages(a.float()), judge.network.stages(b.float())):
            apart = (F.normalize(x) - F.normalize(y)).square().sum(1)
            total = total + apart.reshape(len(a), -1).mean(1)
        return total


@functools.cache
def _judge(name: str, device: torch.device) -> Classifier:
    """The frozen classifier, one per device and process."""
    judge = find_classifier(name)
    _frozen(judge.network, device)
    return judge


def _frozen(network: nn.Module, device: torch.device) -> nn.Module:
    return network.to(device).eval().requires_grad_(False)
