"""The Fréchet distance between two sets of features (Heusel et al. 2017, arXiv:1706.08500)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.metrics.measure import ImageSet, Measure

Moments = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Frechet(Measure):
    """The distance between the Gaussians of the samples' and the reference's features."""

    needs: ClassVar[tuple[str, ...]] = ("features", "reference.image")
    name: ClassVar[str] = "Fréchet distance"
    short: ClassVar[str] = "fd"
    about: ClassVar[str] = "distance to the reference images, as sets, in features"
    place: ClassVar[int] = 0

    def __call__(self, samples: ImageSet, reference: ImageSet) -> float:
        return _distance(samples.kept(_moments), reference.kept(_moments))


def _moments(images: ImageSet) -> Moments:
    return moments(images.features)


def moments(features: Tensor) -> Moments:
    """Mean and unbiased covariance of (n, d) features, float64. ValueError for n < 2."""
    if len(features) < 2:
        raise ValueError(f"a Fréchet distance needs at least 2 images, got {len(features)}")
    return features.double().mean(0), torch.cov(features.double().T).reshape(
        2 * (features.shape[1],)
    )


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """‖m_a - m_b‖² + tr(S_a + S_b - 2 (S_a S_b)^½) of two (n, d) sets; 0 for equal sets.

    The trace of the root is the sum of the roots of the eigenvalues of S_a^½ S_b S_a^½: symmetric,
    so never complex, and stable where n < d (there the value means little: it falls with n, never
    compare different n).
    """
    return _distance(moments(a), moments(b))


def _distance(a: Moments, b: Moments) -> float:
    (mean_a, cov_a), (mean_b, cov_b) = a, b
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, distance.item())
