"""Consistency training without a teacher (Song & Dhariwal 2023, arXiv:2310.14189; first in arXiv:2303.01469)."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fewstep.choice import Count
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.samplers import Renoise, Sampler
from fewstep.diffusion.times import Auto, LogNormal, Times
from fewstep.learning.batch import Batch
from fewstep.learning.consistency import adjacent, gap, jump_and_goal
from fewstep.learning.losses import Metric, PseudoHuber
from fewstep.learning.method import Clock, Clone, Losses, Method, Update


@dataclass(frozen=True)
class ConsistencyTraining(Method):
    """d( f(x_t, t), sg f(x_s, s) )/(t - s): x_t and x_s are made of the same sample and the same noise.

    That is the teacher's Euler step with x0 in the place of its answer, right on average. The grid grows with the run:
    "doubling" (first, 2·first, … last intervals, in equal parts of the run), "progressive" (as published in 2023), or
    "fixed" at `last`. density: how intervals are drawn; None for all alike.
    """

    first: Count = 10
    last: Count = 1280
    curriculum: Literal["doubling", "progressive", "fixed"] = "doubling"
    times: Times = dataclasses.field(default_factory=lambda: Auto("t_min"))
    density: LogNormal | None = dataclasses.field(default_factory=lambda: LogNormal(-1.1, 2.0))
    metric: Metric = dataclasses.field(default_factory=PseudoHuber)
    sample_times: Times = dataclasses.field(default_factory=lambda: Auto("t_min", rho=20.0))

    def __post_init__(self) -> None:
        if self.first > self.last:
            raise ValueError(f"first={self.first} intervals are more than last={self.last}")

    @dataclass
    class Nets:
        """The student alone."""

        student: Denoiser

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        return self.Nets(clone("student", parameterization=model.denoiser.parameterization.boundary()))

    def updates(self, clock: Clock) -> Sequence[Update]:
        return [Update(("student",), self.consistency_loss)]

    def bins(self, clock: Clock) -> int:
        """Intervals of the grid at this step: N(k) - 1 of the papers."""
        if self.curriculum == "fixed":
            return self.last
        if self.curriculum == "doubling":
            stage = max(1, clock.steps // (int(math.log2(self.last // self.first)) + 1))
            return min(self.first * 2 ** (clock.step // stage), self.last)
        square = clock.progress * ((self.last + 1) ** 2 - self.first**2) + self.first**2
        return max(math.ceil(math.sqrt(square) - 1), 1)

    def consistency_loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """One interval and one noise per sample."""
        process = nets.student.process
        t, s = adjacent(self.times(process, self.bins(clock)), batch.draws, process, self.density)
        x0, noise = batch.data, batch.noise()
        x_t, x_s = process.add_noise(x0, noise, t), process.add_noise(x0, noise, s)
        distance = self.metric(*jump_and_goal(nets.student, nets.student, x_t, t, x_s, s, batch.cond))
        return Losses({"consistency": distance / gap(process, t, s).to(distance)}, {"distance": distance})

    def sampler(self, clock: Clock, net: str = "student") -> Sampler:
        return Renoise(steps=2, times=self.sample_times)
