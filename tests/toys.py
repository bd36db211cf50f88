"""A toy of each thing that comes from outside: a plug-in file, as somebody might write one.

Words become vectors by a table; latents are an orthogonal mix of 2 × 2 pixels, drawn with a little
noise; the network reads the vectors' mean; the data are digits with captions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from fewstep.choice import Count, NonNegative, replaced
from fewstep.data.dataset import Dataset, Held
from fewstep.data.digits import Digits
from fewstep.data.source import Source
from fewstep.diffusion.conditioning import Cond
from fewstep.models.codec import Codec, CodecModule
from fewstep.models.conditioner import Conditioner, ConditionerModule
from fewstep.models.network import Network, NetworkModule
from fewstep.models.space import Classes, Column, Image, Space, Text, Texts, Vectors
from fewstep.models.unet import UNet

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "a")
LENGTH = 3
TINY = UNet(channels=8, multipliers=(1,), blocks=1, attention=(), head_channels=8, groups=4)


@dataclass(frozen=True)
class ToyWords(Conditioner):
    """Each word of a caption is a row of a fixed table; an embedding that was stored is taken."""

    reads: ClassVar[tuple[str, ...]] = ("embedding", "caption")

    width: Count = 6
    """Of a word's vector."""

    def build(self) -> ConditionerModule:
        return ToyWordsModule(self)


class ToyWordsModule(ConditionerModule):
    """The table is a weight like any other: initialised under the seed, saved, moved, frozen."""

    null = True

    def __init__(self, spec: ToyWords):
        super().__init__()
        self.spec = spec
        self.columns = {"text": Vectors((LENGTH, spec.width))}
        self.table = nn.Embedding(len(WORDS) + 1, spec.width).requires_grad_(False)

    def forward(self, asked: Mapping[str, Any]) -> Cond:
        null = self.embedded([""])
        if "embedding" in asked:
            return Cond({"text": asked["embedding"].to(null)}, {"text": null})
        return Cond({"text": self.embedded(asked["caption"])}, {"text": null})

    def embedded(self, captions: list[str]) -> torch.Tensor:
        rows = []
        for caption in captions:
            numbers = [WORDS.index(word) for word in caption.split()][:LENGTH]
            rows.append(numbers + [len(WORDS)] * (LENGTH - len(numbers)))
        return self.table(torch.tensor(rows, device=self.table.weight.device))

    def truncated(self, captions):
        return sum(len(caption.split()) > LENGTH for caption in captions)

    def check(self, asked: Mapping[str, Any]) -> None:
        super().check(asked)
        for caption in asked.get("caption", []):
            if unknown := [word for word in caption.split() if word not in WORDS]:
                raise ValueError(f"the toy knows no word {unknown[0]!r}")


@dataclass(frozen=True)
class ToyLatents(Codec):
    """Four neighbouring pixels, mixed by an orthogonal matrix; encoding draws a little noise."""

    std: NonNegative = 0.01
    """Of what encoding draws."""

    def build(self) -> CodecModule:
        return ToyLatentsModule(self)

    def shape(self, image: tuple[int, ...]) -> tuple[int, ...]:
        return (4 * image[0], image[1] // 2, image[2] // 2)

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0] // 4, shape[1] * 2, shape[2] * 2)


class ToyLatentsModule(CodecModule):
    """The matrix is a buffer, random under the seed."""

    def __init__(self, spec: ToyLatents):
        super().__init__()
        self.spec = spec
        self.register_buffer("mix", torch.linalg.qr(torch.randn(4, 4))[0])

    def encode(self, images, draws=None):
        return self.latents(self.moments(images), draws)

    def moments(self, images):
        x = nn.functional.pixel_unshuffle(images * 2 - 1, 2)
        return torch.einsum("ij,bcjhw->bcihw", self.mix, x.unflatten(1, (-1, 4))).flatten(1, 2)

    def latents(self, x, draws=None):
        return x if draws is None else x + self.spec.std * draws.normal(*x.shape[1:]).to(x)

    def decode(self, x0):
        x = torch.einsum("ji,bcjhw->bcihw", self.mix, x0.unflatten(1, (-1, 4))).flatten(1, 2)
        return (nn.functional.pixel_shuffle(x, 2) / 2 + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class ToyTextNet(Network):
    """A U-Net without labels, each channel of whose input is shifted by the text's mean vector."""

    inner: Network = field(default_factory=lambda: TINY)
    """The network inside."""
    time_input = "log_sigma"

    @property
    def extra(self):
        return self.inner.extra

    def build(self, space: Space) -> NetworkModule:
        return ToyTextNetModule(self, space)


class ToyTextNetModule(nn.Module):
    """Calls the inner network on x + text."""

    def __init__(self, spec: ToyTextNet, space: Space):
        super().__init__()
        self.spec, self.space = spec, space
        width = space.columns["text"].shape[-1]
        self.inner = spec.inner.build(Space(space.shape))
        self.text = nn.Linear(width, space.shape[0])
        self.taps = {f"inner.{name}": channels for name, channels in self.inner.taps.items()}

    @property
    def inputs(self):
        return ("text", *self.inner.inputs)

    @property
    def checkpointing(self):
        return self.inner.checkpointing

    @checkpointing.setter
    def checkpointing(self, on):
        if "inner" in self._modules:
            self.inner.checkpointing = on

    def forward(self, x, t, cond, s=None):
        shift = self.text(cond["text"].mean(1).to(self.text.weight.dtype))
        return self.inner(x + shift[:, :, None, None], t, cond, s)

    def with_inputs(self, names):
        wider = copy.copy(self)
        wider._modules = dict(copy.deepcopy(self)._modules)
        wider.inner = self.inner.with_inputs(names)
        wider.spec = replaced(self.spec, inner=wider.inner.spec)
        return wider


@dataclass(frozen=True)
class Captioned(Source):
    """scikit-learn's digits as "a three", with what else may stand in a row."""

    holds: tuple[str, ...] = ("image", "caption")
    """The columns: image, caption, captions, label, latent, embedding."""

    def read(self, beside: Path | None = None) -> Dataset:
        digits = Digits(split="all").dataset()
        torch.manual_seed(7)
        latents = ToyLatents().build()
        words = ToyWords().build()
        captions = [f"a {WORDS[label]}" for label in digits.labels.tolist()]
        everything: dict[str, tuple[Any, Column]] = {
            "image": (digits.images, Image((1, 8, 8))),
            "label": (digits.labels, Classes(10)),
            "caption": (captions, Text()),
            "captions": ([(text, text.split()[1]) for text in captions], Texts()),
            "latent": (latents.encode(digits.floats()), Vectors((4, 4, 4))),
            "embedding": (words.embedded(captions), Vectors((LENGTH, words.spec.width))),
        }
        values = {name: everything[name][0] for name in self.holds}
        columns = {name: everything[name][1] for name in self.holds}
        return Held(values, columns, digits.ids)
