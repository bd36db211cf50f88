"""`Part`: what a run can train beside diffusion models: a classifier, an autoencoder, a text
encoder.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

from torch import nn

from fewstep.models.codec import CodecModule
from fewstep.models.conditioner import ConditionerModule


class Part(ABC):
    """A dataclass around a network, with the names by which runs ask every model.

    codec, conditioner: how rows of data become what the network is trained on. shape: of a sample
    there.
    """

    network: nn.Module
    shape: tuple[int, ...]
    card: dict[str, Any]
    codec: CodecModule

    @property
    @abstractmethod
    def conditioner(self) -> ConditionerModule:
        """What the network is told beside the samples."""

    @property
    def denoiser(self) -> nn.Module:
        """The network, under the name by which runs ask a model for what they clone."""
        return self.network

    def with_student(
        self, net: nn.Module, sampler: None, guidance: Any, card: dict[str, Any], variants: Any
    ) -> Self:
        """The same around a trained network."""
        return dataclasses.replace(self, network=net, card=card)  # type: ignore[type-var]

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes model.json and the weights. NotFiniteError where these are not finite."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Self:
        """What was saved in a model's or a run's folder. FileNotFoundError, ValueError where there
        is none.
        """
