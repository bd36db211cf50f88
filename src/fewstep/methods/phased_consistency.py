"""Phased consistency models (Wang et al. 2024, arXiv:2405.18407)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.choice import Count, NonNegative, Share
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.samplers import FlowMap, Sampler, renoised
from fewstep.diffusion.solvers import Euler, OneStepSolver
from fewstep.diffusion.times import Auto, Segments, Times
from fewstep.diffusion.types import Sample, Time
from fewstep.learning.batch import Batch
from fewstep.learning.consistency import (
    adjacent,
    at_or_above,
    at_or_below,
    compared,
    jump_and_goal,
    jump_to,
    one_between,
    pair,
)
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.losses import Distance, Huber
from fewstep.learning.method import Clock, Clone, Losses, Method, Update
from fewstep.learning.roles import frozen, trained
from fewstep.learning.simulation import Simulation
from fewstep.models.heads import Head


class Jumps(NamedTuple):
    """The student's jump and its goal at the lower `end` of a phase, and the phase's upper end
    `top`.
    """

    jump: Sample
    goal: Sample
    end: Time
    top: Time


@dataclass(frozen=True)
class PhasedConsistency(Simulation):
    """d( J(x_t; t -> e), sg J(x_s; s -> e) ) + adversarial·relu(1 - D(J(x_t; t -> e))): the loss of
    multi-boundary distillation with phases of equal length down to t_min, and a discriminator at
    each phase's end.

    D reads features of the frozen teacher: the student's jump and its goal, which counts as real,
    are both noised from e to a random time of the phase; the head learns by the hinge loss, one
    step before each of the student's. As published, phase k ends ⌊k bins/phases⌋ intervals up, the
    last at t_min (index 0). Unlike the released code, head and student both learn in every step,
    noise levels are the grid's, and samples go along the phases' own ends (there: 749 for 739 …).
    """

    segments: Count = 4
    """Phases of the trajectory: the steps of the student."""
    bins: Count = 50
    """Intervals of the grid."""
    times: Times = dataclasses.field(default_factory=lambda: Auto("t_min", trailing=True))
    """The grid whose intervals are trained on."""
    solver: OneStepSolver = dataclasses.field(default_factory=Euler)
    """The solver of the teacher's steps."""
    guidance: GuidanceRange | None = None
    distance: Distance = dataclasses.field(default_factory=Huber)
    """The distance of the two jumps."""
    adversarial: NonNegative = 0.1
    """Weight of the adversarial loss; 0 leaves it out."""
    simulated: Share = 0.0
    keeps_noise: ClassVar[bool] = True

    @dataclass
    class Nets:
        """The student, the discriminator's head, and the frozen teacher."""

        student: Denoiser = trained(exported=True)
        head: nn.Module = trained()
        teacher: Denoiser = frozen()

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        inputs, own = self.scales.inputs(model), model.denoiser.parameterization
        student = clone("student", inputs=inputs, parameterization=own)
        (channels,) = model.denoiser.network.taps.values()
        return self.Nets(student, Head(channels), model.denoiser)

    def updates(self, clock: Clock) -> Sequence[Update]:
        student = Update(("student",), self.loss)
        return [Update(("head",), self.head_loss), student] if self.adversarial else [student]

    @property
    def ends(self) -> Segments:
        """The phases' ends as a sampler's grid."""
        return Segments(self.times, self.bins, even=True)

    def jumps(self, nets: Nets, batch: Batch) -> Jumps:
        """One interval and one noise per sample."""
        process = nets.teacher.process
        grid = self.times(process, self.bins)
        t, s = adjacent(grid, batch.draws, process)
        ends = self.ends(process, self.segments)
        end = at_or_below(ends, s)
        teacher, cond = self.scales(nets.teacher, batch.cond, batch.draws)
        batch = self.with_answers(batch, nets.student, process, cond, grid)
        x_t, x_s = pair(self.solver, teacher, process, batch, t, s)
        student = jump_to(nets.student, process, end)
        both = jump_and_goal(student, student, x_t, t, x_s, s, cond)
        return Jumps(*both, end, at_or_above(ends, t))

    def logits(self, nets: Nets, x: Sample, jumps: Jumps, level: Time, batch: Batch) -> Tensor:
        """The discriminator on samples at the phase's end, noised from there to `level`."""
        x = renoised(nets.teacher.process, x, batch.noise(), jumps.end, level)
        _, taps = nets.teacher.features(x, level, batch.cond, list(nets.teacher.network.taps))  # type: ignore[arg-type]
        return nets.head(*taps.values())

    def level(self, nets: Nets, jumps: Jumps, batch: Batch) -> Time:
        """A noise level of the phase for the discriminator."""
        process = nets.teacher.process
        grid = self.times(process, self.bins)
        return one_between(grid, jumps.end, jumps.top, batch.draws).clamp(min=process.t_min)

    def head_loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """The hinge loss: relu(1 - D(goal)) + relu(1 + D(jump))."""
        with torch.no_grad():
            jumps = self.jumps(nets, batch)
        level = self.level(nets, jumps, batch)
        real, made = (self.logits(nets, x, jumps, level, batch) for x in (jumps.goal, jumps.jump))
        return Losses({"discriminator": F.relu(1 - real) + F.relu(1 + made)})

    def loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """The jump against its goal, and against the discriminator."""
        jumps = self.jumps(nets, batch)
        terms = {"consistency": compared(self.distance, nets.teacher.process, *jumps[:3])}
        if self.adversarial:
            made = self.logits(nets, jumps.jump, jumps, self.level(nets, jumps, batch), batch)
            terms["adversarial"] = self.adversarial * F.relu(1 - made)
        return Losses(terms)

    def sampler(self, clock: Clock, net: str = "student") -> Sampler:
        return FlowMap(self.segments, self.ends)

    def serves(self, steps: int) -> bool:
        return steps == self.segments

    def for_steps(self, steps: int) -> Method:
        return dataclasses.replace(self, segments=steps)
