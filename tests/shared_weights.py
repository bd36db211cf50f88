"""A view on shared weights: low-rank additions on the layers of a network that others use too."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.models.adapters import Adaptation, View, around_same_tensors


class LowRank(nn.Module):
    """A layer with weights of others, and an own product of two thin matrices beside them."""

    def __init__(self, layer: Any, rank: int):
        super().__init__()
        self.layer = layer
        rows = len(layer.weight)
        columns = layer.weight[0].numel()
        self.down = nn.Parameter(torch.randn(rank, columns) / math.sqrt(columns))
        self.up = nn.Parameter(torch.zeros(rows, rank))

    @property
    def weight(self) -> Tensor:
        """The layer's weight with the addition."""
        return self.layer.weight + (self.up @ self.down).view_as(self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, self.weight, self.layer.bias)
        return self.layer._conv_forward(x, self.weight, self.layer.bias)


class LowRankView(View):
    """The network of others with a low-rank addition on each linear and convolution layer."""

    def __init__(self, network: nn.Module, rank: int):
        super().__init__(network)
        for name, layer in list(network.named_modules()):
            if isinstance(layer, nn.Linear | nn.Conv2d):
                _replace(network, name, LowRank(layer, rank))

    def shared(self) -> list[Tensor]:
        own = {
            id(p) for one in self.modules() if isinstance(one, LowRank) for p in (one.down, one.up)
        }
        return [t for t in (*self.parameters(), *self.buffers()) if id(t) not in own]

    @torch.no_grad()
    def merged(self) -> nn.Module:
        network = copy.deepcopy(self.inside)
        for name, layer in list(network.named_modules()):
            if isinstance(layer, LowRank):
                plain, plain_weight = layer.layer, layer.weight
                plain.weight = nn.Parameter(plain_weight)
                _replace(network, name, plain)
        return network


def _replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, layer)


@dataclass(frozen=True)
class LowRanks(Adaptation):
    """Clones are views on the network that they are cloned from. apart: each on a copy of it, which
    stays frozen as well: what shared weights must be equal to.
    """

    rank: int = 2
    apart: bool = False

    def adapted(self, network: nn.Module, inputs: Any) -> LowRankView:
        assert not inputs
        network = copy.deepcopy(network) if self.apart else network
        return LowRankView(around_same_tensors(network), self.rank)
