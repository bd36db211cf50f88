"""Exponential moving averages of networks."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def ema_update(target: nn.Module, source: nn.Module, decay: float) -> None:
    """Target <- decay·target + (1 - decay)·source; buffers are copied. decay = 0 copies. What the
    two share is left alone.
    """
    pairs = zip(target.parameters(), source.parameters(), strict=True)
    apart = [(mine, theirs) for mine, theirs in pairs if mine is not theirs]
    lerp([mine for mine, _ in apart], [theirs for _, theirs in apart], 1 - decay)
    for mine, theirs in zip(target.buffers(), source.buffers(), strict=True):
        mine.copy_(theirs)


@torch.no_grad()
def lerp(targets: list[Tensor], sources: list[Tensor], weight: float) -> None:
    """Targets += weight·(sources - targets), in a few kernels for all tensors."""
    if targets:
        torch._foreach_lerp_(targets, sources, weight)
