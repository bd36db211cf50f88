"""Numbers as functions of the clock."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from fewstep.choice import Choice, Natural, NonNegative, Share
from fewstep.learning.method import Clock


class Schedule(Choice, ABC):
    """A factor of the learning rate. It starts anew with every phase."""

    warmup: int
    """Steps over which the factor rises linearly from 0 to 1."""

    @abstractmethod
    def after_warmup(self, progress: float) -> float:
        """The factor when `progress` (0 … 1) of the phase behind the warm-up is done."""

    def __call__(self, clock: Clock) -> float:
        """The factor at this step: linear over `warmup` steps, then the schedule's own shape."""
        if clock.phase_step < self.warmup:
            return (clock.phase_step + 1) / self.warmup
        return self.after_warmup(
            (clock.phase_step - self.warmup) / max(1, clock.phase_steps - self.warmup)
        )


@dataclass(frozen=True)
class Constant(Schedule):
    """1 after the warm-up."""

    warmup: Natural = 0

    def after_warmup(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from 1 to `end`."""

    warmup: Natural = 0
    end: Share = 0.0
    """The last factor, 0 … 1."""

    def after_warmup(self, progress: float) -> float:
        return self.end + (1 - self.end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line from 1 to `end`."""

    warmup: Natural = 0
    end: NonNegative = 0.0
    """The last factor."""

    def after_warmup(self, progress: float) -> float:
        return 1 + (self.end - 1) * min(1.0, progress)
