"""Methods whose student learns from a slow copy of itself."""

from abc import ABC
from typing import Any

from fewstep.choice import Decay
from fewstep.diffusion.denoiser import Denoiser
from fewstep.learning.averaging import ema_update
from fewstep.learning.method import Clock, Clone, Method


class SlowTarget(Method, ABC):
    """After each step the target keeps `target_decay` of itself and takes the rest from the
    student; with 0 it is the student. Networks without a target stay as they are.
    """

    target_decay: Decay
    """What the slow target keeps of itself in each step; 0: it is the student."""

    def slow_copy(self, clone: Clone, **wanted: Any) -> Denoiser | None:
        """The target, for a method that asks it without a gradient: none where it is the student,
        for a copy that never differs is memory for nothing.
        """
        return clone("target", **wanted) if self.target_decay else None

    def decay(self, clock: Clock) -> float:
        """How much of the target this step keeps."""
        return self.target_decay

    def after_step(self, nets: Any, clock: Clock) -> None:
        if nets.target is not None:
            ema_update(nets.target, nets.student, self.decay(clock))


def target_of(nets: Any) -> Any:
    """The denoiser that gives the goal: the slow copy or, where there is none, the student."""
    return nets.student if nets.target is None else nets.target
