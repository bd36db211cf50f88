"""Consistency distillation (Song et al. 2023, arXiv:2303.01469, algorithm 2)."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from fewstep.choice import Count, Decay, Share
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.samplers import Renoise, Sampler
from fewstep.diffusion.solvers import Heun, OneStepSolver
from fewstep.diffusion.times import Auto, Times
from fewstep.learning.batch import Batch
from fewstep.learning.consistency import adjacent, jump_and_goal, one_end, pair
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.losses import Distance, Squared
from fewstep.learning.method import Clock, Clone, Losses
from fewstep.learning.roles import frozen, moved, trained
from fewstep.learning.simulation import Simulation
from fewstep.learning.slow_target import SlowTarget, target_of
from fewstep.learning.weights import IntervalWeighting, interval_weight


@dataclass(frozen=True)
class ConsistencyDistillation(SlowTarget, Simulation):
    """w d( f(x_t, t), f_target(x_s, s) ): x_s is the teacher's step from t to the next lower time s
    of a grid.

    The target is a slow copy of the student (decay 0: the student itself). The optimum is the chain
    of the teacher's own steps over the grid, whatever the distance and the weight w.
    """

    bins: Count = 18
    """Intervals of the grid (papers count its bins + 1 points)."""
    times: Times = dataclasses.field(default_factory=lambda: Auto("t_min"))
    """The grid whose intervals are trained on."""
    solver: OneStepSolver = dataclasses.field(default_factory=Heun)
    """The solver of the teacher's steps."""
    distance: Distance = dataclasses.field(default_factory=Squared)
    """The distance of the two answers."""
    weighting: IntervalWeighting = "uniform"
    """Weight of an interval."""
    guidance: GuidanceRange | None = None
    target_decay: Decay = 0.95
    simulated: Share = 0.0
    sample_times: Times = dataclasses.field(default_factory=lambda: Auto("t_min", rho=20.0))
    """Times of the few-step sampler that the student is saved with. end=t_data, here and in
    `times`: the student ends at the data and not at t_min."""

    @dataclass
    class Nets:
        """The student, its slow copy where it has one, and the frozen teacher."""

        student: Denoiser = trained(exported=True)
        target: Denoiser | None = moved()
        teacher: Denoiser = frozen()

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        boundary = model.denoiser.parameterization.boundary(one_end(self.times, self.sample_times))
        inputs = self.scales.inputs(model)
        student = clone("student", inputs=inputs, parameterization=boundary)
        target = self.slow_copy(clone, inputs=inputs, parameterization=boundary)
        return self.Nets(student, target, model.denoiser)

    def loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """One interval and one noise per sample."""
        process = nets.teacher.process
        grid = self.times(process, self.bins)
        t, s = adjacent(grid, batch.draws, process)
        teacher, cond = self.scales(nets.teacher, batch.cond, batch.draws.fork("guidance"))
        batch = self.with_answers(batch, nets.student, process, cond, grid)
        x_t, x_s = pair(self.solver, teacher, process, batch, t, s)
        jump, goal = jump_and_goal(nets.student, target_of(nets), x_t, t, x_s, s, cond)
        distance = self.distance(jump, goal)
        w = interval_weight(self.weighting, process, t, s, nets.student)
        return Losses({"consistency": distance * w.to(distance)}, {"distance": distance})

    def sampler(self, clock: Clock, net: str = "student") -> Sampler:
        return Renoise(steps=2, times=self.sample_times)
