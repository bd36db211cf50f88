"""Consistency training without a teacher (Song & Dhariwal 2023, arXiv:2310.14189; first in
arXiv:2303.01469).
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from fewstep.choice import Count, Decay
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.densities import LogNormal
from fewstep.diffusion.samplers import Renoise, Sampler
from fewstep.diffusion.times import Auto, Times
from fewstep.learning.batch import Batch
from fewstep.learning.consistency import Masks, adjacent, jump_and_goal, one_end, same_noise
from fewstep.learning.guidance import GuidanceRange, GuidedBy
from fewstep.learning.losses import Distance, PseudoHuber
from fewstep.learning.method import Clock, Clone, Losses
from fewstep.learning.roles import moved, trained
from fewstep.learning.slow_target import SlowTarget, target_of
from fewstep.learning.weights import IntervalWeighting, interval_weight


@dataclass(frozen=True)
class ConsistencyTraining(SlowTarget):
    """w d( f(x_t, t), f_target(x_s, s) ), w = 1/(t - s): x_t and x_s are made of the same sample
    and the same noise.

    That is the teacher's Euler step with x0 in the place of its answer, right on average. The grid
    grows with the run: "doubling" (first, 2·first, … last intervals, in equal parts of the run),
    "progressive" (as published in 2023), or "fixed" at `last`. An "adaptive" target
    keeps target_decay^(first/intervals) of itself (so the official code, while the paper counts the
    grid's points instead).

    The form of the first paper: first=2 last=150 curriculum=progressive density=null
    weighting=uniform target=adaptive distance=lpips. What a slow target lags behind does not shrink
    with the interval, as what is to be learned does.
    """

    first: Count = 10
    """Intervals of the grid at the beginning of the run."""
    last: Count = 1280
    """Intervals at its end."""
    curriculum: Literal["doubling", "progressive", "fixed"] = "doubling"
    """How the number of intervals grows: in equal stages (doubling), as in the first paper
    (progressive), or not at all (fixed, at `last`)."""
    times: Times = dataclasses.field(default_factory=lambda: Auto("t_min"))
    """The grid whose intervals are trained on."""
    density: LogNormal | None = dataclasses.field(default_factory=lambda: LogNormal(-1.1, 2.0))
    """How intervals are drawn; null: all alike."""
    distance: Distance = dataclasses.field(default_factory=PseudoHuber)
    """The distance of the two answers."""
    weighting: IntervalWeighting = "gap"
    """Weight of an interval."""
    target: Literal["student", "fixed", "adaptive"] = "student"
    """The student itself, a slow copy (fixed), or one that is slower on finer grids (adaptive)."""
    target_decay: Decay = 0.9
    """What a slow target keeps of itself in each step; adaptive: on the first grid."""
    guidance: GuidanceRange | None = None
    """1 or null: the method asks no teacher that could be guided. 1 also where the teacher samples
    with guidance, which its student then does not learn."""
    target_masks: Masks = "shared"
    """Dropout masks of the target's pass: the student's, its own, or none."""
    sample_times: Times = dataclasses.field(default_factory=lambda: Auto("t_min", rho=20.0))
    """Times of the few-step sampler that the student is saved with. end=t_data, here and in
    `times`: the student ends at the data and not at t_min."""

    def __post_init__(self) -> None:
        if self.first > self.last and self.curriculum != "fixed":
            raise ValueError(f"first={self.first} intervals are more than last={self.last}")

    @property
    def guided_by(self) -> GuidedBy:
        return "nothing"

    @dataclass
    class Nets:
        """The student and, where the options ask for one, its slow copy."""

        student: Denoiser = trained(exported=True)
        target: Denoiser | None = moved()

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        boundary = model.denoiser.parameterization.boundary(one_end(self.times, self.sample_times))
        student = clone("student", parameterization=boundary)
        if self.target == "student":
            return self.Nets(student, None)
        return self.Nets(student, clone("target", parameterization=boundary))

    @property
    def reads_length(self) -> bool:
        return self.curriculum != "fixed"

    def bins(self, clock: Clock) -> int:
        """Intervals of the grid at this step: N(k) - 1 of the papers."""
        if self.curriculum == "fixed":
            return self.last
        if self.curriculum == "doubling":
            stage = max(1, clock.steps // (math.ceil(math.log2(self.last / self.first)) + 1))
            return min(self.first * 2 ** (clock.step // stage), self.last)
        square = clock.progress * ((self.last + 1) ** 2 - self.first**2) + self.first**2
        return max(math.ceil(math.sqrt(square) - 1), 1)

    def decay(self, clock: Clock) -> float:
        """How much of the slow copy this step keeps."""
        if self.target == "adaptive":
            return self.target_decay ** (self.first / self.bins(clock))
        return self.target_decay

    def loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """One interval and one noise per sample."""
        process = nets.student.process
        t, s = adjacent(self.times(process, self.bins(clock)), batch.draws, process, self.density)
        x_t, x_s = same_noise(process, batch, t, s)
        distance = self.distance(
            *jump_and_goal(
                nets.student, target_of(nets), x_t, t, x_s, s, batch.cond, self.target_masks
            )
        )
        w = interval_weight(self.weighting, process, t, s, nets.student)
        return Losses({"consistency": distance * w.to(distance)}, {"distance": distance})

    def sampler(self, clock: Clock, net: str = "student") -> Sampler:
        return Renoise(steps=2, times=self.sample_times)
