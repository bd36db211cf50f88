"""Discriminator heads: one number per sample from features of a denoiser."""

from torch import Tensor, nn


class Head(nn.Module):
    """3×3 convolution, norm, SiLU, 1×1 convolution, mean over positions. Tokens (batch, n, channels) count as a row."""

    def __init__(self, channels: int, width: int = 64, groups: int = 8):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, 1, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Logits (batch,), high for real images."""
        if features.ndim == 3:
            features = features.transpose(1, 2)[:, :, None]
        return self.body(features.float()).flatten(1).mean(1)
