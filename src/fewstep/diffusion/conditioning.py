"""What a network is told beside x_t and t: class labels, text, a guidance scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fewstep.diffusion.draws import Draws
from fewstep.diffusion.types import Mask, to_device, where_rows


@dataclass(frozen=True, eq=False)
class Cond:
    """Named values, one row per sample, and the one row that means "no condition" (their null).

    A value without a null (a guidance scale, say) stays as it is when the condition is taken away.
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    null: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def unconditional(self) -> Cond:
        """The same rows without their condition."""
        return replace(self, values={k: self._bare(k, v) for k, v in self.values.items()})

    def _bare(self, name: str, value: Tensor) -> Tensor:
        return self.null[name].expand_as(value) if name in self.null else value

    def is_null(self) -> Mask:
        """Which rows have no condition at all. There must be a null."""
        equal = []
        for name, null in self.null.items():
            value = self.values[name]
            equal.append((value == null).view(len(value), -1).all(1))
        return torch.stack(equal).all(0)

    def dropped(self, share: float, draws: Draws) -> Cond:
        """The condition taken away from a random share of the rows, as guidance needs it
        (arXiv:2207.12598).
        """
        if share == 0 or not self.null:
            return self
        drop = draws.uniform() < share

        def pick(name: str, value: Tensor) -> Tensor:
            if name not in self.null:
                return value
            return where_rows(drop, self.null[name], value)

        return replace(self, values={k: pick(k, v) for k, v in self.values.items()})

    def with_values(self, **values: Tensor) -> Cond:
        """More or other values, for example `guidance`."""
        return replace(self, values={**self.values, **values})

    def doubled(self) -> Cond:
        """The conditional rows, then the unconditional ones: one batch for a guided step."""
        bare = self.unconditional().values
        return Cond({k: torch.cat([v, bare[k]]) for k, v in self.values.items()}, self.null)

    def select(self, start: int, stop: int) -> Cond:
        """Rows start … stop - 1."""
        return replace(self, values={k: v[start:stop] for k, v in self.values.items()})

    def to(self, device: torch.device | str) -> Cond:
        """The same on another device."""
        return Cond(
            {k: to_device(v, device) for k, v in self.values.items()},
            {k: to_device(v, device) for k, v in self.null.items()},
        )
