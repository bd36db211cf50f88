"""Names of tensor shapes. They are checked while pytest runs (jaxtyping + beartype) and cost
nothing otherwise.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Sample = Float[Tensor, "batch *shape"]
"""One row per sample, any shape behind it: images (batch, channels, height, width) or points
(batch, d).
"""
Time = Float[Tensor, "batch"]
"""One time per sample, in the unit of its process; float64 wherever the device has it."""
Grid = Float[Tensor, "points"]
"""Times of a sampler or a training grid, decreasing, float64 on the CPU."""


Mask = Bool[Tensor, "batch"]
"""True for some of the samples."""


def time_dtype(device: torch.device | str) -> torch.dtype:
    """float64, or float32 on devices without it (Apple's MPS)."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def to_device(
    values: Tensor, device: torch.device | str, dtype: torch.dtype | None = None
) -> Tensor:
    """Values on a device, in `dtype` (their own where it is None). The host does not wait for a GPU
    that they go to; from one to the host it does, for they may be read at once.
    """
    waits = torch.device(device).type == "cpu"
    return values.to(device=device, dtype=dtype, non_blocking=not waits)


def where_rows(mask: Mask, a: Tensor, b: Tensor) -> Tensor:
    """The rows of a where the mask is true, those of b elsewhere."""
    mask = to_device(mask, a.device)
    return torch.where(mask.view(-1, *(1,) * (a.ndim - 1)), a, b)


def per_sample(coefficient: Time, like: Sample) -> Tensor:
    """A coefficient per sample, shaped to multiply `like`: cast to its dtype and device only after
    it was computed.
    """
    cast = to_device(coefficient, like.device, like.dtype)
    return cast.view(-1, *(1,) * (like.ndim - 1))
