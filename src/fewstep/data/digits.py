"""scikit-learn's handwritten digits: 1,797 images of 8×8 in 17 grey levels, on every machine without a download."""

from dataclasses import dataclass

import torch

from fewstep.choice import Natural, Share
from fewstep.data.source import Dataset, Source, Split


@dataclass(frozen=True)
class Digits(Source):
    """The digits; a value of 0 … 16 becomes value/16, rounded to 8 bits."""

    split: Split = "train"
    limit: Natural = 0
    fraction: Share = 1.0
    split_seed: int = 0

    def read(self) -> Dataset:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = (torch.from_numpy(digits.images) / 16 * 255).round().to(torch.uint8)[:, None]
        labels = torch.from_numpy(digits.target).long()
        return Dataset(images, labels, 10, torch.arange(len(images)), {"source": "scikit-learn's digits"})
