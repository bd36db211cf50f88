"""Names of tensor shapes. They are checked while pytest runs (jaxtyping + beartype) and cost
nothing otherwise.
"""

import torch
from jaxtyping import Float
from torch import Tensor

Sample = Float[Tensor, "batch *shape"]
"""One row per sample, any shape behind it: images (batch, channels, height, width) or points
(batch, d).
"""
Time = Float[Tensor, "batch"]
"""One time per sample, in the unit of its process; float64 wherever the device has it."""
Grid = Float[Tensor, "points"]
"""Times of a sampler or a training grid, decreasing, float64 on the CPU."""


def time_dtype(device: torch.device | str) -> torch.dtype:
    """float64, or float32 on devices without it (Apple's MPS)."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def per_sample(coefficient: Time, like: Sample) -> Tensor:
    """A coefficient per sample, shaped to multiply `like`: cast to its dtype and device only after
    it was computed.
    """
    cast = coefficient.to(device=like.device, dtype=like.dtype, non_blocking=True)
    return cast.view(-1, *(1,) * (like.ndim - 1))
