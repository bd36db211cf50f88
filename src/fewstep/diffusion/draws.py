"""Random numbers keyed by sample, for training and sampling alike.

A generator that runs on is a hidden state: it makes results depend on the batch size, the number of
processes and on where a run was interrupted. Here every number is a pure function of (seed, stream,
step, update, count, row): the rows of a batch come in blocks of 16, and each block has a generator
of its own, seeded by a hash of that key. So a micro-batch or a process draws just its rows and gets
the same values, and a resumed run needs no saved random state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fewstep.diffusion.types import time_dtype, to_device

BLOCK = 16


@runtime_checkable
class Noise(Protocol):
    """Where the noise of a sampler comes from: `Draws`, or what another library draws."""

    def normal(self, *shape: int) -> Tensor:
        """(rows, *shape), unit normal."""


class Draws:
    """Random tensors whose first dimension is the rows given; `count` advances with every draw."""

    def __init__(
        self,
        seed: int,
        rows: Sequence[int],
        *,
        stream: str = "",
        step: int = 0,
        update: int = 0,
        device: torch.device | str = "cpu",
        _one: bool = False,
    ):
        self.seed = seed
        self.rows = rows
        self.stream = stream
        self.step = step
        self.update = update
        self.device = torch.device(device)
        self.count = 0
        self._one = _one

    def fork(self, stream: str) -> Draws:
        """Independent draws for the same rows: data, loss and sampler never share a stream."""
        return self._again(f"{self.stream}/{stream}", self.rows)

    def select(self, start: int, stop: int) -> Draws:
        """The draws of rows[start:stop], for one part of a batch."""
        part = self._again(self.stream, self.rows[start:stop])
        part.count = self.count
        return part

    def grouped(self, size: int) -> Draws:
        """Draws whose values are the same for all rows of a group, rows size·i … size·(i + 1) -
        1.
        """
        return self._again(
            f"{self.stream}/groups-of-{size}", [row // size * size for row in self.rows]
        )

    def shared(self) -> Draws:
        """Draws without a batch dimension, the same for every row and process; advances this
        object's count.
        """
        self.count += 1
        return Draws(
            self.seed,
            (0,),
            stream=f"{self.stream}/shared-{self.count}",
            step=self.step,
            update=self.update,
            device=self.device,
            _one=True,
        )

    def choice(self, high: int) -> int:
        """One of 0 … high - 1, the same for every row and process, known on the host; advances this
        object's count.
        """
        one = self.shared()
        one.device = torch.device("cpu")
        return int(one.integers(high))

    def normal(self, *shape: int) -> Tensor:
        """Unit normal, float32, (rows, *shape)."""
        return self._draw(lambda g: torch.randn(BLOCK, *shape, generator=g))

    def uniform(self, *shape: int) -> Tensor:
        """Uniform on [0, 1), float64 (float32 on MPS), (rows, *shape)."""
        drawn = self._draw(
            lambda g: torch.rand(BLOCK, *shape, generator=g, dtype=torch.float64), move=False
        )
        return to_device(drawn, self.device, time_dtype(self.device))

    def integers(self, high: int, *shape: int) -> Tensor:
        """Uniform on {0, …, high - 1}, int64, (rows, *shape)."""
        return self._draw(lambda g: torch.randint(high, (BLOCK, *shape), generator=g))

    def _draw(self, block_of: Callable[[torch.Generator], Tensor], move: bool = True) -> Tensor:
        self.count += 1
        blocks = sorted({row // BLOCK for row in self.rows})
        drawn = (
            torch.cat([block_of(self._generator(block)) for block in blocks])
            if blocks
            else _nothing(block_of)
        )
        place = {block: i * BLOCK for i, block in enumerate(blocks)}
        index = [place[row // BLOCK] + row % BLOCK for row in self.rows]
        if index != list(range(len(drawn))):
            drawn = drawn[torch.tensor(index, dtype=torch.long)]
        drawn = drawn[0] if self._one else drawn
        return to_device(drawn, self.device) if move else drawn

    def _generator(self, block: int) -> torch.Generator:
        key = f"{self.seed}|{self.stream}|{self.step}|{self.update}|{self.count}|{block}".encode()
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1
        return torch.Generator().manual_seed(seed)

    def _again(self, stream: str, rows: Sequence[int]) -> Draws:
        return Draws(
            self.seed,
            rows,
            stream=stream,
            step=self.step,
            update=self.update,
            device=self.device,
            _one=self._one,
        )


def _nothing(block_of: Callable[[torch.Generator], Tensor]) -> Tensor:
    return block_of(torch.Generator())[:0]
