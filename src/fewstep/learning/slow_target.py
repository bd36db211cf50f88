"""Methods whose student learns from a slow copy of itself."""

from abc import ABC
from typing import Any

from fewstep.choice import Decay
from fewstep.learning.averaging import ema_update
from fewstep.learning.method import Clock, Method


class SlowTarget(Method, ABC):
    """After each step the target keeps `target_decay` of itself and takes the rest from the
    student; with 0 it is the student. Networks without a target stay as they are.
    """

    target_decay: Decay
    """What the slow target keeps of itself in each step; 0: it is the student."""

    def decay(self, clock: Clock) -> float:
        """How much of the target this step keeps."""
        return self.target_decay

    def after_step(self, nets: Any, clock: Clock) -> None:
        if nets.target is not None:
            ema_update(nets.target, nets.student, self.decay(clock))
