"""Small networks that training needs beside denoisers: discriminator heads, the log-variance of a
loss.
"""

import torch
from torch import Tensor, nn

from fewstep.diffusion.types import Time
from fewstep.models.network import Embedding


class Head(nn.Module):
    """3×3 convolution, norm, SiLU, 1×1 convolution, mean over positions. Tokens (batch, n,
    channels) count as a row.
    """

    def __init__(self, channels: int, width: int = 64, groups: int = 8):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.GroupNorm(groups, width),
            nn.SiLU(),
            nn.Conv2d(width, 1, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Logits (batch,), high for real images."""
        if features.ndim == 3:
            features = features.transpose(1, 2)[:, :, None]
        return self.body(features.float()).flatten(1).mean(1)


class Uncertainty(nn.Module):
    """The logarithm of a loss's mean as a learned function of the noise level (Karras et al. 2023,
    arXiv:2312.02696).

    e^-u ℓ + u is smallest at u = ln E[ℓ]: every noise level then has the same weight. u = 0 before
    it is trained.
    """

    def __init__(self, size: int = 64):
        super().__init__()
        self.embed = Embedding(size, 1)

    def forward(self, angle: Time) -> Tensor:
        """u, (batch,), of atan2(sigma, alpha)."""
        return self.embed(8 * torch.log(torch.tan(angle).clamp(1e-6, 1e6))).sum(1)
