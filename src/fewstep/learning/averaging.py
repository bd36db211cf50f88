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


def decay_of(decay: float, updates: int, warmup: bool = True) -> float:
    """What an average keeps of itself in the update behind `updates` others.

    warmup: at most k/(k + 9) behind k updates, so that the average takes the first weights that it
    meets whole, reaches back over about a tenth of its updates, and is the plain one of `decay`
    from 9·decay/(1 - decay) updates on.
    """
    return min(decay, updates / (updates + 9)) if warmup else decay


def share_of_start(decay: float, updates: int, warmup: bool = True) -> float:
    """How much of the average are the weights from before its first update, 0 … 1."""
    return 0.0 if warmup and updates else decay**updates


@torch.no_grad()
def lerp(targets: list[Tensor], sources: list[Tensor], weight: float) -> None:
    """Targets += weight·(sources - targets), in a few kernels for all tensors."""
    if targets:
        torch._foreach_lerp_(targets, sources, weight)
