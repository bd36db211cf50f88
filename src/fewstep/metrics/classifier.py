"""How a classifier is trained: by the same trainer as every network here, through a method of its
own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.choice import NonNegative
from fewstep.learning.batch import Batch
from fewstep.learning.method import Clock, Clone, Losses, Method
from fewstep.learning.roles import trained
from fewstep.models.classifier import Classifier


@dataclass(frozen=True)
class Classification(Method):
    """Cross entropy, on images that are shifted and noised a little."""

    shift: float = 0.5
    """Images are moved by up to so many pixels."""
    noise: NonNegative = 0.2
    """Noise of a standard deviation up to this is added."""
    trains: ClassVar[type] = Classifier

    @dataclass
    class Nets:
        """The network in training."""

        student: nn.Module = trained(exported=True)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"x0", "label"})

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        return self.Nets(model.network)

    def loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """One shift, one noise level per image; plain images where the network is not in
        training.
        """
        x, label = batch.data, batch.cond["label"]
        if nets.student.training:
            x = self._disturbed(x, batch)
        logits = nets.student(x)
        right: Mapping[str, Tensor] = {"right": (logits.argmax(1) == label).float()}
        return Losses({"cross_entropy": F.cross_entropy(logits, label, reduction="none")}, right)

    def _disturbed(self, x: Tensor, batch: Batch) -> Tensor:
        draws, size = batch.draws, torch.tensor(x.shape[-2:], device=x.device)
        move = (2 * draws.uniform(2).float() - 1) * self.shift * 2 / size
        theta = torch.eye(2, 3, device=x.device).repeat(len(x), 1, 1)
        theta[:, :, 2] = move
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
        level = self.noise * draws.uniform().float().view(-1, 1, 1, 1)
        return x + level * draws.normal(*x.shape[1:])
