"""The same dropout masks for two forward passes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


class SharedDropout:
    """Replays the random state of the device that draws the masks (arXiv:2310.14189, appendix).

    masks = SharedDropout(x_t.device)
    with masks: a = student(x_t, t, cond)
    with masks: b = target(x_s, s, cond)      # the same masks; the state advances by one pass only
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._state: torch.Tensor | None = None

    def __enter__(self) -> None:
        module: Any = {"cuda": torch.cuda, "mps": torch.mps}.get(self.device.type, torch)
        if self._state is None:
            self._state = module.get_rng_state()
        else:
            module.set_rng_state(self._state)

    def __exit__(self, *error: object) -> None:
        """The state stays where the pass left it."""


@contextlib.contextmanager
def without_dropout(network: object) -> Iterator[None]:
    """Passes of the network without masks, in training too. What is no module has none."""
    layers = (
        [m for m in network.modules() if isinstance(m, nn.Dropout)]
        if isinstance(network, nn.Module)
        else []
    )
    active = [layer for layer in layers if layer.training]
    try:
        for layer in active:
            layer.train(False)
        yield
    finally:
        for layer in active:
            layer.train(True)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Global random state for what cannot be keyed by row (dropout), restored behind the block."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed visits every backend: 1 ms
        if devices:
            torch.cuda.manual_seed(seed)
        yield
