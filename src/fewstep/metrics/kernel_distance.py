"""The kernel distance between two sets of features (Bińkowski et al. 2018, arXiv:1801.01401)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.choice import Count
from fewstep.metrics.measure import Estimate, ImageSet, Measure

BLOCKS = 20
LEAST, PAIR = 3, 2
"""Images, of which it is defined; and of each class, where these come in turn."""
CERTAIN = 1.96  # standard errors, on both sides, of 95 %


@dataclass(frozen=True)
class KernelDistance(Measure):
    """The squared maximum mean discrepancy under the kernel (x·y/d + 1)³ of d features, without
    bias: its mean does not depend on the number of images, which the Fréchet distance's does, and
    may be a little below 0. Its interval is the jackknife's over blocks of images. Classes of
    which there are equally many were drawn so, and are counted so.

    Taken by default where there are no more images than features.
    """

    needs: ClassVar[tuple[str, ...]] = ("features", "reference.image")
    uses: ClassVar[tuple[str, ...]] = ("label", "reference.label")
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
        sets = []
        for one in (samples, reference):
            taken, labels = _spread(len(one), self.most), one.columns.get("label")
            sets.append((one.features[taken], None if labels is None else labels[taken]))
        (x, x_labels), (y, y_labels) = sets
        return kernel_distance(x, y, x_labels, y_labels)


def kernel_distance(
    x: Tensor, y: Tensor, x_labels: Tensor | None = None, y_labels: Tensor | None = None
) -> Estimate:
    """MMD² of (n, d) and (m, d) features, and half its 95 % interval. ValueError for n or m < 3.

    mean of k over pairs of different x, and of different y, less twice that over pairs of both.
    All of it is made of sums over blocks, so that the estimate without a block costs nothing:
    of B blocks, the variance is (B - 1)/B times the sum of squares of these around their mean.

    labels: (n,) and (m,). Of classes asked for in turn two images are less often of one class than
    of independent images, in (n_c - 1)/(n - 1) of the pairs of one of class c in place of n_c/n.
    Where labels are even, that is made good, from two of each class on (ValueError for one); with
    two there is no interval, for none can be left out.
    """
    if min(len(x), len(y)) < LEAST:
        raise ValueError(f"a kernel distance needs {LEAST} images, got {len(x)} and {len(y)}")
    for labels in (x_labels, y_labels):
        if labels is not None and _even(labels) and _fewest(labels) < PAIR:
            raise ValueError("a kernel distance needs two images of each class")
    blocks = min(BLOCKS, len(x), len(y))
    mine, its = _Blocks(x, x_labels, blocks), _Blocks(y, y_labels, blocks)
    both = torch.zeros(blocks, blocks, dtype=torch.float64)
    for i, one in enumerate(mine.features):
        for j, other in enumerate(its.features):
            both[i, j] = _kernel(one, other).sum()
    n, m = (one.sizes.sum(0) for one in (mine, its))
    (xx, xx_without), (yy, yy_without) = mine.means(), its.means()
    whole = xx + yy - 2 * both.sum() / (n.sum() * m.sum())
    without = _without(both) / ((n.sum() - n) * (m.sum() - m))
    without = xx_without + yy_without - 2 * without
    if min(one.sizes.sum(1).min() for one in (mine, its)) < LEAST:
        return Estimate(whole.item())
    variance = (blocks - 1) / blocks * (without - without.mean()).square().sum()
    return Estimate(whole.item(), CERTAIN * variance.sqrt().item())


class _Blocks:
    """Features in blocks: as they come, or with even shares of their classes.

    classes: of each block's rows; all 0 where labels are not even. sizes: (classes, blocks).
    """

    def __init__(self, features: Tensor, labels: Tensor | None, blocks: int) -> None:
        classes = torch.zeros(len(features), dtype=torch.long)
        if labels is not None and _even(labels):
            classes = labels.unique(return_inverse=True)[1]
            order = classes.argsort(stable=True)
            order = torch.cat([order[first::blocks] for first in range(blocks)])
            features, classes = features[order], classes[order]
        self.features = features.double().tensor_split(blocks)
        self.classes = classes.tensor_split(blocks)
        many = int(classes.max()) + 1
        self.sizes = torch.stack([one.bincount(minlength=many) for one in self.classes], 1).double()

    def means(self) -> tuple[Tensor, Tensor]:
        """The mean of k over pairs of rows as if they were independent: of all, and (blocks,) of
        all but each block.
        """
        every = torch.zeros(len(self.features), len(self.features), dtype=torch.float64)
        rows, inner = torch.zeros_like(self.sizes), torch.zeros_like(self.sizes)
        for i, one in enumerate(self.features):
            for j, other in enumerate(self.features):
                k = _kernel(one, other)
                if i == j:
                    k.fill_diagonal_(0.0)  # an image is no neighbour of itself
                every[i, j] = k.sum()
                k *= self.classes[i][:, None] == self.classes[j]
                rows[:, i].index_add_(0, self.classes[i], k.sum(1))
                if i == j:
                    inner[:, i].index_add_(0, self.classes[i], k.sum(1))
        of_class, sizes = rows.sum(1), self.sizes.sum(1)
        # Pairs with a row of a block are counted from both sides, those inside it in both.
        without = of_class[:, None] - 2 * rows + inner
        return (
            _mean(every.sum(), of_class, sizes),
            _mean(_without(every), without, sizes[:, None] - self.sizes),
        )


def _mean(every: Tensor, of_class: Tensor, sizes: Tensor) -> Tensor:
    """From the sums over all pairs of different rows and over those inside each class: rows of
    class c have n_c - 1 others of it, where n_c are due.
    """
    return (every + (of_class / (sizes - 1)).sum(0)) / sizes.sum(0) ** 2


def _without(sums: Tensor) -> Tensor:
    """Of sums over pairs of blocks: the sum of all that have no part in each block."""
    return sums.sum() - sums.sum(0) - sums.sum(1) + sums.diag()


def _even(labels: Tensor) -> bool:
    """Whether there are equally many of each, as of classes asked for in turn."""
    counts = labels.unique(return_counts=True)[1]
    return len(counts) > 1 and bool(counts.max() - counts.min() <= 1)


def _fewest(labels: Tensor) -> int:
    return int(labels.unique(return_counts=True)[1].min())


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _spread(number: int, most: int) -> Tensor:
    """Rows that are taken."""
    return torch.linspace(0, number - 1, min(number, most)).round().long()
