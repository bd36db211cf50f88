"""Distances between two batches of samples, one number per sample."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from fewstep.choice import Choice, NonNegative
from fewstep.diffusion.types import Sample, Time


class Metric(Choice, ABC):
    """d(a, b) per sample, (batch,), zero for equal samples."""

    @abstractmethod
    def __call__(self, a: Sample, b: Sample) -> Time:
        """The distance of each row of a from the same row of b."""


@dataclass(frozen=True)
class Squared(Metric):
    """Mean over the elements of (a - b)². Papers write the sum; official code takes the mean."""

    def __call__(self, a: Sample, b: Sample) -> Time:
        return (a - b).square().flatten(1).mean(1)


@dataclass(frozen=True)
class Absolute(Metric):
    """Mean over the elements of |a - b|."""

    def __call__(self, a: Sample, b: Sample) -> Time:
        return (a - b).abs().flatten(1).mean(1)


@dataclass(frozen=True)
class PseudoHuber(Metric):
    """√(‖a - b‖² + c²) - c over the whole sample (Song & Dhariwal 2023, arXiv:2310.14189).

    c = scale·√d with d elements, so that a scale means the same at every resolution. scale = 0 is the plain norm, whose
    gradient has length 1 whatever the error; at a = b it is given the gradient 0.
    """

    scale: NonNegative = 0.00054

    def __call__(self, a: Sample, b: Sample) -> Time:
        difference = (a - b).flatten(1)
        if self.scale == 0:
            return torch.linalg.vector_norm(difference, dim=1)
        c, square = self.scale * difference.shape[1] ** 0.5, difference.square().sum(1)
        return square / (torch.sqrt(square + c * c) + c)  # = √(square + c²) - c without its cancellation
