"""What every network family promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Set
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fewstep.choice import Choice
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.types import Sample, Time

TimeInput = Literal["log_sigma", "identity", "thousand"]


class Outside(NamedTuple):
    """What a network must fit: sample shape, number of classes (0: none), whether "no class" is one more of them."""

    shape: tuple[int, ...]
    classes: int = 0
    null: bool = False


class Network(Choice, ABC):
    """The options of a network family; `build` makes the module."""

    folder: ClassVar[str | None] = "fewstep.models"

    @abstractmethod
    def build(self, outside: Outside) -> NetworkModule:
        """A freshly initialised network. ValueError where the options cannot serve that shape."""


class NetworkModule(Protocol):
    """An nn.Module called as network(x, t, cond, s) with t and s in the network's own process."""

    outside: Outside

    @property
    def inputs(self) -> tuple[str, ...]:
        """What it reads of the condition, and "s" where it reads that."""
        ...

    @property
    def spec(self) -> Network:
        """The options that it was built with."""
        ...

    def __call__(self, x: Sample, t: Time, cond: Cond, s: Time | None) -> Sample:
        """The raw output F."""
        ...

    def with_inputs(self, names: Set[str]) -> nn.Module:
        """A copy that also reads these, equal to this one until it is trained."""
        ...


def noise_features(t: Time, kind: TimeInput) -> Time:
    """The number that the time embedding takes, of the network's own t: 250 ln t (0 stands for 1e-20), t, or 1000 t.

    250 ln sigma is openai's scaling of EDM's ¼ ln sigma for sinusoids that expect 0 … 1000.
    """
    if kind == "log_sigma":
        return 250 * torch.log(t.clamp(min=1e-20))
    return 1000 * t if kind == "thousand" else t


def sinusoid(values: Time, size: int) -> Tensor:
    """(batch, size): cosines, then sines, of values·10000^(-k/(size/2)), k = 0 … size/2 - 1."""
    half = size // 2
    k = torch.arange(half, dtype=values.dtype, device=values.device)
    phase = values[:, None] * torch.exp(-k * (9.210340371976184 / half))
    return torch.cat([torch.cos(phase), torch.sin(phase)], dim=1)
