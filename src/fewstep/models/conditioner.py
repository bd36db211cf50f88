"""Conditioners: what a user says (a class label, later a prompt) to the `Cond` that a network
reads.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.choice import Choice, Count
from fewstep.diffusion.conditioning import Cond


class Conditioner(Choice, ABC):
    """Makes conditions. `classes`: number of labels (0: none); `null`: the network knows "no
    condition".
    """

    classes: int
    null: bool

    @abstractmethod
    def __call__(self, labels: Tensor | None) -> Cond:
        """The condition of a batch with these labels, (batch,) int64."""

    @abstractmethod
    def labels(self, first: int, num: int) -> Tensor | None:
        """Balanced labels for images first … first + num - 1; None where there are no classes."""


@dataclass(frozen=True)
class Unconditional(Conditioner):
    """No condition."""

    classes = 0
    null = False

    def __call__(self, labels: Tensor | None) -> Cond:
        return Cond()

    def labels(self, first: int, num: int) -> Tensor | None:
        return None


@dataclass(frozen=True)
class Labels(Conditioner):
    """Class labels 0 … classes - 1; with null=True one more class means "any"."""

    classes: Count = 10
    null: bool = True

    def __call__(self, labels: Tensor | None) -> Cond:
        if labels is None:
            raise ValueError("this model needs class labels")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise ValueError(
                f"labels must lie in 0 … {self.classes - 1}, got {int(labels.min())} … "
                f"{int(labels.max())}"
            )
        null = {"label": torch.full_like(labels, self.classes)} if self.null else {}
        return Cond({"label": labels}, null)

    def labels(self, first: int, num: int) -> Tensor | None:
        return torch.arange(first, first + num) % self.classes
