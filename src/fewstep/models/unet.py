"""The U-Net of guided diffusion (Dhariwal & Nichol 2021, arXiv:2105.05233), in the layout of
openai's checkpoints.

Sub-modules carry the names of that layout (input_blocks.4.0.in_layers.2 …), so that its weights
load as they are and the export to diffusers' UNet2DModel is a renaming (export/diffusers.py).
Fixed: scale-shift norms, residual blocks that resample, attention in the middle.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import MaxLen, MinLen
from torch import Tensor, nn

from fewstep.choice import Count, Depth, Share, Width
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.types import Sample, Time
from fewstep.models.network import (
    ConditionedModule,
    Network,
    NetworkModule,
    TimeInput,
    zeroed,
)
from fewstep.models.space import Space

LEVELS = 16  # at most; images would have sides of 2^15


@dataclass(frozen=True)
class UNet(Network):
    """Options of the U-Net.

    Inputs of `extra` are zero-initialised embeddings, added to the time's.
    """

    channels: Width = 128
    """Channels at the highest resolution."""
    multipliers: Annotated[tuple[Depth, ...], MinLen(1), MaxLen(LEVELS)] = (1, 2, 2, 1)
    """Factors of the channels, for each resolution from the highest; each halves the sides."""
    blocks: Depth = 3
    """Residual blocks at each resolution."""
    attention: tuple[Count, ...] = (2,)
    """Downsampling factors (1, 2, 4, …) whose blocks attend."""
    head_channels: Count = 32
    """Channels of one attention head."""
    groups: Count = 32
    """Groups of the group norms; every number of channels divides by it."""
    dropout: Share = 0.0
    """Dropout inside the residual blocks."""
    time_input: TimeInput | None = None
    extra: tuple[str, ...] = ()
    adapted: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "attention": ("qkv", "proj_out"),
        "all": (
            "qkv",
            "proj_out",
            "in_layers.2",
            "out_layers.3",
            "skip_connection",
            "emb_layers.1",
        ),
    }

    def build(self, space: Space) -> NetworkModule:
        if not self.multipliers:
            raise ValueError("a U-Net needs at least one level: multipliers is empty")
        factors = [2**level for level in range(len(self.multipliers))]
        if strange := sorted(set(self.attention) - set(factors)):
            raise ValueError(
                f"attention={strange[0]}: the {len(factors)} levels of this U-Net have the factors "
                f"{', '.join(map(str, factors))}"
            )
        factor = factors[-1]
        if len(space.shape) != 3 or any(n % factor for n in space.shape[1:]):
            raise ValueError(
                f"a U-Net of {len(self.multipliers)} levels needs images whose sides divide by "
                f"{factor}, "
                f"got shape {tuple(space.shape)}"
            )
        for channels in (self.channels * m for m in self.multipliers):
            if channels % self.groups or channels % self.head_channels:
                raise ValueError(
                    f"{channels} channels do not divide by groups={self.groups} and "
                    f"head_channels={self.head_channels}"
                )
        return UNetModule(self, space)


class Stack(nn.Sequential):
    """A sequence whose residual blocks also take the embedding."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


class ResBlock(nn.Module):
    """Norm-SiLU-(resample)-conv, the embedding as scale and shift of the second norm,
    norm-SiLU-dropout-conv, skip.
    """

    def __init__(self, inputs: int, outputs: int, embedding: int, spec: UNet, resample: str = ""):
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(spec.groups, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * outputs))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(spec.groups, outputs),
            nn.SiLU(),
            nn.Dropout(spec.dropout),
            zeroed(nn.Conv2d(outputs, outputs, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.resample = resample

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.resample == "up" else x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm, silu, conv = self.in_layers
        h = conv(self._resampled(silu(norm(x))))
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, dim=1)
        norm, silu, dropout, conv = self.out_layers
        h = conv(dropout(silu(norm(h) * (1 + scale) + shift)))
        return self.skip_connection(self._resampled(x)) + h


class Attention(nn.Module):
    """Self-attention over all positions, with a residual; channel order of qkv: all q, all k, all
    v.
    """

    def __init__(self, channels: int, spec: UNet):
        super().__init__()
        self.heads = channels // spec.head_channels
        self.norm = nn.GroupNorm(spec.groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        # Contiguous (batch, heads, positions, channels) lets PyTorch take its fast kernels.
        qkv = (
            self.qkv(self.norm(x))
            .view(b, 3, self.heads, c // self.heads, h * w)
            .permute(1, 0, 2, 4, 3)
            .contiguous()
        )
        out = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return x + self.proj_out(out.transpose(2, 3).reshape(b, c, h, w))


class UNetModule(ConditionedModule):
    """The network; see `UNet`."""

    spec: UNet

    def __init__(self, spec: UNet, space: Space):
        image_channels, width, embedding = space.shape[0], spec.channels, 4 * spec.channels
        super().__init__(spec, space, width, embedding)

        def block(inputs: int, outputs: int, factor: int, resample: str = "") -> list[nn.Module]:
            made: list[nn.Module] = [ResBlock(inputs, outputs, embedding, spec, resample)]
            return made + [Attention(outputs, spec)] * (factor in spec.attention and not resample)

        now = spec.multipliers[0] * width
        self.input_blocks = nn.ModuleList([Stack(nn.Conv2d(image_channels, now, 3, padding=1))])
        skips, factor, last = [now], 1, len(spec.multipliers) - 1
        for level, multiplier in enumerate(spec.multipliers):
            for _ in range(spec.blocks):
                self.input_blocks.append(Stack(*block(now, multiplier * width, factor)))
                now = multiplier * width
                skips.append(now)
            if level < last:
                self.input_blocks.append(Stack(*block(now, now, factor, "down")))
                skips.append(now)
                factor *= 2
        self.middle_block = Stack(
            ResBlock(now, now, embedding, spec),
            Attention(now, spec),
            ResBlock(now, now, embedding, spec),
        )
        self.taps = {"middle_block": now}
        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(spec.multipliers))):
            for i in range(spec.blocks + 1):
                layers = block(now + skips.pop(), multiplier * width, factor)
                now = multiplier * width
                if level and i == spec.blocks:
                    layers += block(now, now, factor, "up")
                    factor //= 2
                self.output_blocks.append(Stack(*layers))
        self.out = nn.Sequential(
            nn.GroupNorm(spec.groups, now),
            nn.SiLU(),
            zeroed(nn.Conv2d(now, image_channels, 3, padding=1)),
        )

    def forward(self, x: Sample, t: Time, cond: Cond, s: Time | None = None) -> Sample:
        embedding = self.embedding(t, cond, s)
        x = x.to(embedding.dtype)
        skips = []
        for stack in self.input_blocks:
            x = self.through(stack, x, embedding)
            skips.append(x)
        x = self.through(self.middle_block, x, embedding)
        for stack in self.output_blocks:
            x = self.through(stack, torch.cat([x, skips.pop()], dim=1), embedding)
        return self.out(x)
