"""What a look at samples beside real images shows at once: noise, blank or all alike."""

from torch import Tensor

FAINT = 0.3
"""Of the spread of real images, below which there is nothing to see."""
SMALLEST = 2  # pixels of a side, below which there are no neighbours


def looks(samples: Tensor, real: Tensor) -> str:
    """In words, for samples and real images of the same conditions, (n, channels, height, width);
    '' where nothing is striking.

    Noise: neighbouring pixels differ nearly as two of any place do. The mean square of their
    differences over twice the variance is 1 of white noise, and far below of pictures; the limit
    lies half way between the real images and 1.
    """
    if min(samples.shape[2:]) < SMALLEST:
        return ""
    if _spread(samples) < FAINT * _spread(real):
        return "blank: their pixels hardly differ"
    rough = roughness(real)
    if roughness(samples) > (1 + rough) / 2:
        return "noise: neighbouring pixels have little to do with each other"
    if len(samples) > 1 and _variety(samples) < FAINT * _variety(real):
        return "all alike"
    return ""


def roughness(images: Tensor) -> float:
    """How much neighbouring pixels differ, relative to pixels of any place."""
    across, down = (images.diff(dim=dim).square().mean().item() for dim in (3, 2))
    variance = images.flatten(2).var(2).mean().item()
    return (across + down) / 2 / max(2 * variance, 1e-12)


def _spread(images: Tensor) -> float:
    return images.flatten(1).std(1).mean().item()


def _variety(images: Tensor) -> float:
    return images.std(0).mean().item()
