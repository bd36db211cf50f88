"""Codecs: images in [0, 1] to model space and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from fewstep.choice import Choice
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.types import Sample


class Codec(Choice, ABC):
    """The options of a codec; `build` makes the module, with its weights.

    Model space is where noise is added; the codec is the only place that knows another.
    """

    folder: ClassVar[str | None] = "fewstep.models"

    @abstractmethod
    def build(self) -> CodecModule:
        """The module. Weights that are not part of the options are loaded by whoever saved them."""

    def shape(self, image: tuple[int, ...]) -> tuple[int, ...]:
        """Of a sample in model space, for images of that shape (channels, height, width)."""
        return image

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the image that a sample of that shape becomes."""
        return shape


class CodecModule(nn.Module, ABC):
    """A codec with its weights, which are frozen and move with the model.

    A module without parameters or buffers is saved by its options alone.
    """

    spec: Codec

    @abstractmethod
    def encode(self, images: Tensor, draws: Draws | None = None) -> Sample:
        """(batch, channels, height, width) in [0, 1] to model space, float32.

        A codec that has a distribution over latents draws from it, or without `draws` gives its
        middle.
        """

    def moments(self, images: Tensor) -> Tensor:
        """What `encode` knows of images before it draws, (batch, …): what a cache keeps of them.
        `encode(images, draws)` equals `latents(moments(images), draws)`; a codec that draws has
        both of its own.
        """
        return self.encode(images)

    def latents(self, moments: Tensor, draws: Draws | None = None) -> Sample:
        """Drawn from what `moments` gave, or without `draws` the middle; no network is run."""
        return moments

    @abstractmethod
    def decode(self, x0: Sample) -> Tensor:
        """Model space to images, clipped to [0, 1]."""


@dataclass(frozen=True)
class Pixels(Codec):
    """Model space is the image in [-1, 1], where the field's sigma_data = 0.5 and diffusers'
    pipelines live.
    """

    def build(self) -> CodecModule:
        return PixelsModule(self)


class PixelsModule(CodecModule):
    """An affine map."""

    def __init__(self, spec: Pixels):
        super().__init__()
        self.spec = spec

    def encode(self, images: Tensor, draws: Draws | None = None) -> Sample:
        return images * 2 - 1

    def decode(self, x0: Sample) -> Tensor:
        return (x0 / 2 + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class UnitPixels(Codec):
    """Model space is the image itself, in [0, 1], as in the published score networks of
    arXiv:2011.13456 (variance exploding).
    """

    def build(self) -> CodecModule:
        return UnitPixelsModule(self)


class UnitPixelsModule(CodecModule):
    """Nothing but the limits."""

    def __init__(self, spec: UnitPixels):
        super().__init__()
        self.spec = spec

    def encode(self, images: Tensor, draws: Draws | None = None) -> Sample:
        return images

    def decode(self, x0: Sample) -> Tensor:
        return x0.clamp(0, 1)
