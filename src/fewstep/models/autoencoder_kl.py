"""The autoencoder of Stable Diffusion, diffusers' `AutoencoderKL` (arXiv:2112.10752): images to
latents that are drawn from a normal distribution, and back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.choice import replaced
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.types import Sample
from fewstep.models.codec import Codec, CodecModule
from fewstep.models.library import Config, completed, made

CLASS = "diffusers.AutoencoderKL"


@dataclass(frozen=True)
class AutoencoderKl(Codec):
    """diffusers' AutoencoderKL. Model space is (latent - shift_factor)·scaling_factor."""

    config: Config = field(default_factory=dict)
    """Options of diffusers' AutoencoderKL, as its config.json has them; what is not given is its
    default."""

    def build(self) -> AutoencoderKlModule:
        return AutoencoderKlModule(self)

    @property
    def options(self) -> dict[str, Any]:
        """All options of the class. ValueError for one that it does not have."""
        found = completed(self.config, CLASS)
        for name in ("latents_mean", "latents_std"):
            if found[name] is not None:
                raise ValueError(
                    f"{CLASS}: {name} is not known here, only scaling_factor and shift_factor"
                )
        return found

    @property
    def factor(self) -> int:
        """How many pixels of a side are one of a latent's."""
        return 2 ** (len(self.options["block_out_channels"]) - 1)

    def shape(self, image: tuple[int, ...]) -> tuple[int, ...]:
        channels, *sides = image
        options = self.options
        if channels != options["in_channels"]:
            raise ValueError(
                f"the autoencoder takes images of {options['in_channels']} channels, not {channels}"
            )
        if any(side % self.factor for side in sides):
            raise ValueError(
                f"the autoencoder takes images whose sides are multiples of {self.factor}, not "
                f"{'×'.join(map(str, sides))}"
            )
        return (options["latent_channels"], *(side // self.factor for side in sides))

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.options["out_channels"], *(side * self.factor for side in shape[1:]))


class AutoencoderKlModule(CodecModule):
    """`module` is diffusers' own. Its arithmetic is in the type of its weights, what it gives is
    float32.
    """

    spec: AutoencoderKl

    def __init__(self, spec: AutoencoderKl):
        super().__init__()
        self.spec = spec
        options = spec.options
        self.scale: float = options["scaling_factor"]
        self.shift: float = options["shift_factor"] or 0.0
        self.module = made(CLASS, options).eval().requires_grad_(False)

    def rescale(self, factor: float) -> None:
        """Another scaling_factor from now on."""
        self.spec = replaced(self.spec, config={**self.spec.config, "scaling_factor": factor})
        self.module.register_to_config(scaling_factor=factor)
        self.scale = factor

    def moments(self, images: Tensor) -> Tensor:
        """Mean and log variance of the latents of images in [0, 1], in the autoencoder's own units:
        (batch, 2·channels, height, width). They are what is worth keeping of an image.
        """
        x = (images * 2 - 1).to(self.module.dtype)
        return self.module.encode(x).latent_dist.parameters.float()

    def latents(self, moments: Tensor, draws: Draws | None = None) -> Sample:
        """Of `moments` a sample in model space, or without `draws` its mean."""
        mean, log_variance = moments.chunk(2, dim=1)
        if draws is not None:
            std = torch.exp(log_variance.clamp(-30, 20) / 2)  # the bounds are diffusers'
            mean = mean + std * draws.normal(*mean.shape[1:])
        return (mean - self.shift) * self.scale

    def encode(self, images: Tensor, draws: Draws | None = None) -> Sample:
        return self.latents(self.moments(images), draws)

    def decode(self, x0: Sample) -> Tensor:
        return (self.unclamped(x0) / 2 + 0.5).clamp(0, 1)

    def unclamped(self, x0: Sample) -> Tensor:
        """What the decoder makes of model space, [-1, 1] for images: a loss needs its gradient
        beyond.
        """
        z = x0 / self.scale + self.shift
        return self.module.decode(z.to(self.module.dtype)).sample.float()
