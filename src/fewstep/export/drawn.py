"""The noise that a pipeline of another library will draw, for our own samplers."""

import torch
from torch import Tensor


class Drawn:
    """Draws of a torch generator with a seed, one after the other, for so many rows."""

    def __init__(self, seed: int, rows: int):
        self.generator, self.rows = torch.Generator().manual_seed(seed), rows

    def normal(self, *shape: int) -> Tensor:
        """(rows, *shape), unit normal."""
        return torch.randn(self.rows, *shape, generator=self.generator)
