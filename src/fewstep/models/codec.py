"""Codecs: images in [0, 1] to model space and back."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from fewstep.choice import Choice
from fewstep.diffusion.types import Sample


class Codec(Choice, ABC):
    """Model space is where noise is added; the codec is the only place that knows another."""

    @abstractmethod
    def encode(self, images: Tensor) -> Sample:
        """(batch, channels, height, width) in [0, 1] to model space, float32."""

    @abstractmethod
    def decode(self, x0: Sample) -> Tensor:
        """Model space to images, clipped to [0, 1]."""


@dataclass(frozen=True)
class Pixels(Codec):
    """Model space is the image in [-1, 1], where the field's sigma_data = 0.5 and diffusers'
    pipelines live.
    """

    def encode(self, images: Tensor) -> Sample:
        return images * 2 - 1

    def decode(self, x0: Sample) -> Tensor:
        return (x0 / 2 + 0.5).clamp(0, 1)
