"""Optimizers by name, and a step that a non-finite gradient cannot enter."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.choice import Choice, Decay, NonNegative, Positive


class OptimizerSpec(Choice, ABC):
    """An optimizer and its learning rate."""

    lr: float
    """The learning rate, before the schedule's factor."""

    @abstractmethod
    def build(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over these parameters."""


@dataclass(frozen=True)
class AdamLike(OptimizerSpec, ABC):
    """The options that the Adam family shares."""

    lr: Positive = 1e-3
    beta1: Decay = 0.9
    """Decay of the average of the gradients."""
    beta2: Decay = 0.999
    """Decay of the average of their squares."""
    eps: Positive = 1e-8
    """Added to the root of the second average."""
    weight_decay: NonNegative = 0.0
    """What a step takes off the weights, in learning rates."""

    def options(self) -> dict[str, Any]:
        """As PyTorch's optimizers take them."""
        return {
            "lr": self.lr,
            "betas": (self.beta1, self.beta2),
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }


@dataclass(frozen=True)
class AdamW(AdamLike):
    """AdamW in one fused kernel."""

    def build(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, fused=True, **self.options())


@dataclass(frozen=True)
class RAdam(AdamLike):
    """Rectified Adam (arXiv:1908.03265), the choice of the consistency papers."""

    lr: Positive = 1e-4

    def build(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        on_gpu = parameters[0].device.type == "cuda"
        return torch.optim.RAdam(parameters, foreach=True, capturable=on_gpu, **self.options())


@dataclass(frozen=True)
class Sgd(OptimizerSpec):
    """Plain gradient descent."""

    lr: Positive = 1e-2

    def build(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.lr, foreach=True)


@torch.no_grad()
def guarded_step(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """optimizer.step(), or nothing at all where `bad` (0-d bool) is true; decided on the device,
    without waiting.

    Fused optimizers know that themselves (`found_inf`, made for loss scaling). For the others the
    gradient is made harmless, and weights and state are put back by an interpolation whose weight
    is exactly 0 or 1. Where an error ends the step in its middle (memory ran out) nothing of it
    stays.
    """
    parameters = []
    for group in optimizer.param_groups:
        parameters += [p for p in group["params"] if p.grad is not None]
    if optimizer.defaults.get("fused"):
        _fused_step(optimizer, parameters, bad)
    else:
        _undone_step(optimizer, parameters, bad)


def _fused_step(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], bad: Tensor
) -> None:
    fresh = [p for p in parameters if not optimizer.state[p]]
    optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
    try:
        optimizer.step()
    except Exception:
        _forget(optimizer, fresh)
        raise
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]


def _undone_step(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], bad: Tensor
) -> None:
    for p in parameters:
        assert p.grad is not None
        p.grad = torch.where(bad, torch.zeros_like(p.grad), p.grad)
    fresh = [p for p in parameters if not optimizer.state[p]]
    tensors = [p.detach() for p in parameters] + _state(optimizer, parameters)
    before = [t.clone() for t in tensors]
    try:
        optimizer.step()
    except Exception:
        for t, old in zip(tensors, before):
            t.copy_(old)
        _forget(optimizer, fresh)
        raise
    made = _state(optimizer, fresh)  # state that this very step made: to undo it is to make it zero
    for t, old in zip(tensors + made, before + [torch.zeros_like(t) for t in made]):
        t.lerp_(old, bad.to(t))


def _forget(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    """No state of these: a half that was made would pass for a whole."""
    for p in parameters:
        optimizer.state[p].clear()


def _state(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    found: list[Tensor] = []
    for p in parameters:
        found += [t for t in optimizer.state[p].values() if isinstance(t, Tensor)]
    return found
