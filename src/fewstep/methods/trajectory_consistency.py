"""Trajectory consistency distillation (Zheng et al. 2024, arXiv:2402.19159)."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from fewstep.choice import Count, Decay, Share
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.samplers import FlowMap, Sampler
from fewstep.diffusion.solvers import Euler, OneStepSolver
from fewstep.diffusion.times import Auto, Strided, Times
from fewstep.learning.batch import Batch
from fewstep.learning.consistency import (
    adjacent,
    compared,
    jump_and_goal,
    jump_to,
    one_between,
    pair,
)
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.losses import Distance, Huber
from fewstep.learning.method import Clock, Clone, Losses
from fewstep.learning.roles import frozen, moved, trained
from fewstep.learning.simulation import Simulation
from fewstep.learning.slow_target import SlowTarget, target_of


@dataclass(frozen=True)
class TrajectoryConsistency(SlowTarget, Simulation):
    """d( J(x_t; t -> e), J_target(x_s; s -> e) ): x_s is the guided teacher's step, J one DDIM jump
    with the network's answer, and e any time of the grid from its end up to s, all alike; where e =
    s the goal is x_s itself.

    told_end: the student reads where it is to land ("TCF(S+)"). Without it ("TCF(1)", as published)
    one answer must serve all ends, which no student does exactly.
    """

    bins: Count = 50
    """Intervals of the grid."""
    times: Times = dataclasses.field(default_factory=lambda: Auto("t_min", trailing=True))
    """The grid whose intervals are trained on."""
    solver: OneStepSolver = dataclasses.field(default_factory=Euler)
    """The solver of the teacher's steps."""
    guidance: GuidanceRange | None = None
    distance: Distance = dataclasses.field(default_factory=Huber)
    """The distance of the two jumps."""
    told_end: bool = False
    """The student reads where it is to land."""
    target_decay: Decay = 0.95
    simulated: Share = 0.0
    gamma: Share = 0.3
    """gamma of the sampler that the student is saved with: strategic stochastic sampling."""

    @dataclass
    class Nets:
        """The student, its slow copy where it has one, and the frozen teacher."""

        student: Denoiser = trained(exported=True)
        target: Denoiser | None = moved()
        teacher: Denoiser = frozen()

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        inputs = self.scales.inputs(model) | ({"s"} if self.told_end else set())
        own = model.denoiser.parameterization
        student = clone("student", inputs=inputs, parameterization=own)
        target = self.slow_copy(clone, inputs=inputs, parameterization=own)
        return self.Nets(student, target, model.denoiser)

    def loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """One interval, one noise and one end per sample."""
        process = nets.teacher.process
        grid = self.times(process, self.bins)
        t, s = adjacent(grid, batch.draws, process)
        teacher, cond = self.scales(nets.teacher, batch.cond, batch.draws)
        batch = self.with_answers(batch, nets.student, process, cond, grid)
        x_t, x_s = pair(self.solver, teacher, process, batch, t, s)
        end = one_between(grid, grid[-1].expand(len(s)), s, batch.draws)
        student, target = (jump_to(net, process, end) for net in (nets.student, target_of(nets)))
        jump, goal = jump_and_goal(student, target, x_t, t, x_s, s, cond)
        return Losses({"consistency": compared(self.distance, process, jump, goal, end)})

    def sampler(self, clock: Clock, net: str = "student") -> Sampler:
        return FlowMap(4, Strided(self.times, self.bins), self.gamma, "time")

    def serves(self, steps: int) -> bool:
        return steps <= self.bins
