"""Consistency trajectory models (Kim et al. 2023, arXiv:2310.02279)."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from fewstep.choice import Count, Decay, NonNegative, Share
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.densities import Density, Usual
from fewstep.diffusion.samplers import FlowMap, Sampler
from fewstep.diffusion.solvers import Heun, OneStepSolver
from fewstep.diffusion.times import Auto, Strided, Times
from fewstep.diffusion.types import Sample, Time, time_dtype, to_device
from fewstep.learning.batch import Batch
from fewstep.learning.consistency import jump_and_goal, jump_to, one_between
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.losses import Distance, Squared
from fewstep.learning.method import Clock, Clone, Losses
from fewstep.learning.roles import frozen, moved, trained
from fewstep.learning.slow_target import SlowTarget
from fewstep.learning.weights import weight


@dataclass(frozen=True)
class ConsistencyTrajectory(SlowTarget):
    """d( C(G(x_t, t, s)), C(sg G(x_u, u, s)) ) + denoising·‖g(x_t', t', t') - x0‖²/out(t')²: x_u is
    several of the teacher's steps from x_t, s any time of the grid from its end up to u, G(x, t, s)
    the step from t to s with the student's answer g(x, t, s). C = G_target(·, s, end) carries both
    to the end of the grid, where they are compared; the gradient goes through it, not into it.

    Between 1 and `longest` steps are taken, the same for all rows, k of them with probability
    proportional to k. g(x, t, t) is a denoiser, which the second term teaches; under guidance x0 is
    there the guided teacher's answer. Unlike the official
    code: fixed weights, for adaptive ones would depend on the rows of a pass; the mean squared
    error for LPIPS; no adversarial term; fewer teacher steps (there: up to the whole grid). gamma
    shortens sigma/alpha itself, not its distance from t_min.
    """

    bins: Count = 18
    """Intervals of the grid."""
    longest: Count = 4
    """The largest number of the teacher's steps between the two points."""
    times: Times = dataclasses.field(default_factory=lambda: Auto("t_min", trailing=True))
    """The grid whose intervals are trained on."""
    solver: OneStepSolver = dataclasses.field(default_factory=Heun)
    """The solver of the teacher's steps."""
    distance: Distance = dataclasses.field(default_factory=Squared)
    """The distance at the end of the grid."""
    denoising: NonNegative = 1.0
    """Weight of the denoising term; 0 leaves it out."""
    density: Density = dataclasses.field(default_factory=Usual)
    """Of the times of the denoising term."""
    guidance: GuidanceRange | None = None
    target_decay: Decay = 0.999
    gamma: Share = 0.0
    """gamma of the sampler that the student is saved with, 0 (deterministic) … 1."""

    def __post_init__(self) -> None:
        if self.longest > self.bins:
            raise ValueError(
                f"longest={self.longest} steps are more than the bins={self.bins} of the grid"
            )

    @dataclass
    class Nets:
        """The student, its slow copy, and the frozen teacher."""

        student: Denoiser = trained(exported=True)
        target: Denoiser = moved()
        teacher: Denoiser = frozen()

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        own = model.denoiser.parameterization
        inputs = {"s"} | self.scales.inputs(model)
        student = clone("student", inputs=inputs, parameterization=own)
        target = clone("target", inputs=inputs, parameterization=own)
        return self.Nets(student, target, model.denoiser)

    def loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """One start, one end and one noise per sample, and others for the denoising term."""
        process, x0 = nets.teacher.process, batch.data
        grid = self.times(process, self.bins)
        times = to_device(grid, x0.device, time_dtype(x0.device))
        steps = self.steps_of(batch.draws.choice(self.longest * (self.longest + 1) // 2))
        first = batch.draws.integers(len(times) - steps)
        t, *later = (times[first + k] for k in range(steps + 1))
        x_t = process.add_noise(x0, batch.noise(), t)
        teacher, told = self.scales(nets.teacher, batch.cond, batch.draws.fork("guidance"))
        with torch.no_grad():
            x_u, u = x_t, t
            for lower in later:
                x_u, u = self.solver(teacher, process, x_u, u, lower, told), lower
        last = times[-1].expand(len(u))
        middle = one_between(grid, last, u, batch.draws)

        def cleaned(x_t: Sample, t: Time, cond: Cond, s: Time | None = None) -> Sample:
            x_s = jump_to(nets.student, process, middle)(x_t, t, cond)
            return jump_to(nets.target, process, last)(x_s, middle, cond)

        pair = jump_and_goal(cleaned, cleaned, x_t, t, x_u, u, told)
        terms = {"trajectory": self.distance(*pair)}
        if self.denoising:
            t = self.density(process, batch.draws)
            x_t = process.add_noise(x0, batch.noise(), t)
            if self.scales != GuidanceRange():
                with torch.no_grad():
                    x0 = teacher(x_t, t, told)
            error = Squared()(nets.student(x_t, t, told, t), x0)
            terms["denoising"] = (
                self.denoising * error * weight("output", nets.student, t).to(error)
            )
        return Losses(terms)

    def steps_of(self, place: int) -> int:
        """The k in whose block `place` lies, where k = 1, 2, 3, … have blocks of k places each."""
        return (math.isqrt(8 * place + 1) + 1) // 2

    def sampler(self, clock: Clock, net: str = "student") -> Sampler:
        return FlowMap(2, Strided(self.times, self.bins), self.gamma)

    def serves(self, steps: int) -> bool:
        return steps <= self.bins
