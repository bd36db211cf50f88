"""The kernel distance between two sets of features (Bińkowski et al. 2018, arXiv:1801.01401)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.choice import Count
from fewstep.metrics.measure import Estimate, ImageSet, Measure

BLOCKS = 20
LEAST = 3
"""Images, of which it is defined."""
CERTAIN = 1.96  # standard errors, on both sides, of 95 %


@dataclass(frozen=True)
class KernelDistance(Measure):
    """The squared maximum mean discrepancy under the kernel (x·y/d + 1)³ of d features, without
    bias: its mean does not depend on the number of images, which the Fréchet distance's does, and
    may be a little below 0. Its interval is the jackknife's over blocks of images.

    Taken by default where there are no more images than features.
    """

    needs: ClassVar[tuple[str, ...]] = ("features", "reference.image")
    name: ClassVar[str] = "kernel distance"
    short: ClassVar[str] = "kd"
    digits: ClassVar[int] = 4
    about: ClassVar[str] = "distance to the reference images, as sets, in features, without bias"
    place: ClassVar[int] = 1
    by_default: ClassVar[bool] = False
    of_itself: ClassVar[float | None] = None  # each image would be its own neighbour

    most: Count = 5000
    """Of more images of the reference, or samples, so many are taken, evenly spread."""

    def __call__(self, samples: ImageSet, reference: ImageSet) -> float:
        return self.estimate(samples, reference).value

    def estimate(self, samples: ImageSet, reference: ImageSet) -> Estimate:
        x, y = (_spread(one.features.double(), self.most) for one in (samples, reference))
        return kernel_distance(x, y)


def kernel_distance(x: Tensor, y: Tensor) -> Estimate:
    """MMD² of (n, d) and (m, d) features, and half its 95 % interval. ValueError for n or m < 3.

    mean of k over pairs of different x, and of different y, less twice that over pairs of both.
    All of it is made of sums over blocks, so that the estimate without a block costs nothing:
    of B blocks, the variance is (B - 1)/B times the sum of squares of these around their mean.
    """
    if min(len(x), len(y)) < LEAST:
        raise ValueError(f"a kernel distance needs {LEAST} images, got {len(x)} and {len(y)}")
    blocks = min(BLOCKS, len(x), len(y))
    xs, ys = x.tensor_split(blocks), y.tensor_split(blocks)
    xx, yy, xy = _sums(xs, xs), _sums(ys, ys), _sums(xs, ys)
    # An image is no neighbour of itself.
    xx -= torch.diag(torch.stack([_kernel_of_itself(one) for one in xs]))
    yy -= torch.diag(torch.stack([_kernel_of_itself(one) for one in ys]))
    n, m = _sizes(xs), _sizes(ys)
    whole = _mmd2(xx.sum(), yy.sum(), xy.sum(), n.sum(), m.sum())
    without = _mmd2(
        xx.sum() - xx.sum(0) - xx.sum(1) + xx.diag(),
        yy.sum() - yy.sum(0) - yy.sum(1) + yy.diag(),
        xy.sum() - xy.sum(0) - xy.sum(1) + xy.diag(),
        n.sum() - n,
        m.sum() - m,
    )
    variance = (blocks - 1) / blocks * (without - without.mean()).square().sum()
    return Estimate(whole.item(), CERTAIN * variance.sqrt().item())


def _mmd2(xx: Tensor, yy: Tensor, xy: Tensor, n: Tensor, m: Tensor) -> Tensor:
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)


def _sums(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
    """(blocks, blocks): the kernel summed over all pairs of two blocks."""
    found = torch.zeros(len(a), len(b), dtype=torch.float64)
    for i, one in enumerate(a):
        for j, other in enumerate(b):
            found[i, j] = _kernel(one, other).sum()
    return found


def _sizes(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.tensor([len(one) for one in parts], dtype=torch.float64)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _kernel_of_itself(a: Tensor) -> Tensor:
    return ((a.square().sum(1) / a.shape[1] + 1) ** 3).sum()


def _spread(features: Tensor, most: int) -> Tensor:
    if len(features) <= most:
        return features
    return features[torch.linspace(0, len(features) - 1, most).round().long()]
