"""What a training step shows to those that look on."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from fewstep.learning.method import Clock


class Seen:
    """Behind one optimizer step, in every process.

    clock: of the step. numbers: for the log, 0-d tensors on the device that nobody has read yet; an
    observer that stands before the log may add to them. lines: what the log read behind this step,
    the newest line last; empty where it read nothing. stop: the signal that ends the run here, 0
    if none. losses: what the gradients were of, 0-d on the device, by the networks that trained.
    """

    def __init__(
        self,
        clock: Clock,
        numbers: dict[str, Tensor | float],
        stop: int,
        make: Callable[[], dict[str, nn.Module]],
        losses: Mapping[str, Tensor] = MappingProxyType({}),
    ):
        self.losses = losses
        self.clock, self.numbers, self.stop, self._make = clock, numbers, stop, make
        self.lines: list[dict[str, Any]] = []

    @property
    def done(self) -> int:
        """Steps that are done, with this one."""
        return self.clock.step + 1

    @property
    def last(self) -> bool:
        """Whether the run is at its end."""
        return self.done == self.clock.steps

    @property
    def ends(self) -> bool:
        """Whether no step follows: it is the last one, or a signal stops the run."""
        return self.last or self.stop > 0

    def due(self, every: int) -> bool:
        """Whether what is done every so many steps (0: never) is due; behind the last one it is."""
        return every > 0 and (self.last or self.done % every == 0)

    @functools.cached_property
    def exported(self) -> dict[str, nn.Module]:
        """Frozen copies of the exported networks with their first average, made once a step.

        A collective call where networks are sharded: all processes ask, or none.
        """
        return self._make()

    def release(self) -> None:
        """Lets go of the copies: the next step needs the memory."""
        self.__dict__.pop("exported", None)


Observer = Callable[[Seen], None]
