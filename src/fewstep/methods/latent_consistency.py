"""Latent consistency distillation (Luo et al. 2023, arXiv:2310.04378); LCM-LoRA's way:
arXiv:2311.05556.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from fewstep.choice import Count, Decay, Share
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import Boundary, LcmBoundary, Parameterization
from fewstep.diffusion.samplers import Renoise, Sampler
from fewstep.diffusion.solvers import Euler, OneStepSolver
from fewstep.diffusion.times import Auto, Strided, Times
from fewstep.learning.batch import Batch
from fewstep.learning.consistency import adjacent, jump_and_goal, pair
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.losses import Distance, Huber
from fewstep.learning.method import Clock, Clone, Losses
from fewstep.learning.roles import frozen, moved, trained
from fewstep.learning.simulation import Simulation
from fewstep.learning.slow_target import SlowTarget, target_of
from fewstep.learning.weights import IntervalWeighting, interval_weight


@dataclass(frozen=True)
class LatentConsistency(SlowTarget, Simulation):
    """d( f(x_t, t, g), f_target(x_s, s, g) ): x_s is one DDIM step of the guided teacher over an
    interval of the grid.

    A grid of 50 skips 20 indices of a table of 1000. g is drawn per sample and read by the student,
    which needs no second evaluation. guidance.embed=false and target_decay=0 is LCM-LoRA's way: the
    student never sees g. Students of a table have the released boundary (`LcmBoundary`), others
    that of consistency models. The sampler takes an answer for clean data (algorithm 3). The
    published range is 3 … 15 (w = 2 … 14), for text. Unlike the released code: g enters as a plain
    number, zero-initialised, so that the first student is the teacher.
    """

    bins: Count = 50
    """Intervals of the grid."""
    times: Times = dataclasses.field(default_factory=lambda: Auto("t_min", trailing=True))
    """The grid whose intervals are trained on. end=t_data: the student ends at the data, where
    otherwise the noise of t_min stays; not in the released files' form."""
    solver: OneStepSolver = dataclasses.field(default_factory=Euler)
    """The solver of the teacher's steps."""
    guidance: GuidanceRange | None = dataclasses.field(
        default_factory=lambda: GuidanceRange(1.0, 5.0, embed=True)
    )
    distance: Distance = dataclasses.field(default_factory=Huber)
    """The distance of the two answers."""
    weighting: IntervalWeighting = "uniform"
    """Weight of an interval."""
    target_decay: Decay = 0.95
    simulated: Share = 0.0

    @dataclass
    class Nets:
        """The student, its slow copy where it has one, and the frozen teacher."""

        student: Denoiser = trained(exported=True)
        target: Denoiser | None = moved()
        teacher: Denoiser = frozen()

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        inputs = self.scales.inputs(model)
        boundary = boundary_of(model.denoiser).boundary(self.times.end)
        student = clone("student", inputs=inputs, parameterization=boundary)
        target = self.slow_copy(clone, inputs=inputs, parameterization=boundary)
        return self.Nets(student, target, model.denoiser)

    def loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """One interval, one noise and one guidance scale per sample."""
        process = nets.teacher.process
        grid = self.times(process, self.bins)
        t, s = adjacent(grid, batch.draws, process)
        teacher, cond = self.scales(nets.teacher, batch.cond, batch.draws)
        batch = self.with_answers(batch, nets.student, process, cond, grid)
        x_t, x_s = pair(self.solver, teacher, process, batch, t, s)
        jump, goal = jump_and_goal(nets.student, target_of(nets), x_t, t, x_s, s, cond)
        distance = self.distance(jump, goal)
        w = interval_weight(self.weighting, process, t, s, nets.student)
        return Losses({"consistency": distance * w.to(distance)})

    def sampler(self, clock: Clock, net: str = "student") -> Sampler:
        return Renoise(min(4, self.bins), Strided(self.times, self.bins, "t_data"))

    def serves(self, steps: int) -> bool:
        return steps <= self.bins


def boundary_of(teacher: Denoiser) -> Parameterization:
    """The teacher's prediction as a consistency function: the released one for a network that
    speaks a table's own.

    That one was released for index 0 as t_min.
    """
    of, process = teacher.parameterization, teacher.process
    if (
        process.discrete
        and process.t_min == 0
        and teacher.own == process
        and not isinstance(of, Boundary)
    ):
        return LcmBoundary(of)
    return of.boundary()
