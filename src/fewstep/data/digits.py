"""scikit-learn's handwritten digits: 1,797 images of 8×8 in 17 grey levels, on every machine
without a download.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from fewstep.data.dataset import Dataset, held_images
from fewstep.data.source import Source
from fewstep.models.space import Space, image_space


@dataclass(frozen=True)
class Digits(Source):
    """The digits; a value of 0 … 16 becomes value/16, rounded to 8 bits."""

    def foreseen(self) -> Space:
        return image_space((1, 8, 8), 10)

    def read(self, beside: Path | None = None) -> Dataset:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = (torch.from_numpy(digits.images) / 16 * 255).round().to(torch.uint8)[:, None]
        labels = torch.from_numpy(digits.target).long()
        return held_images(
            images, labels, 10, torch.arange(len(images)), {"source": "scikit-learn's digits"}
        )
