"""Easy consistency tuning (Geng et al. 2024, arXiv:2406.14548), with a step by the data or by the
teacher.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from fewstep.choice import Count, Decay, NonNegative, Positive
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.densities import Density, LogNormal
from fewstep.diffusion.process import Process
from fewstep.diffusion.samplers import Renoise, Sampler
from fewstep.diffusion.solvers import OneStepSolver
from fewstep.diffusion.times import Auto, Times
from fewstep.diffusion.types import Time
from fewstep.learning.batch import Batch
from fewstep.learning.consistency import jump_and_goal, pair
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.losses import Distance, PseudoHuber
from fewstep.learning.method import Clock, Clone, Losses
from fewstep.learning.optional_teacher import OptionalTeacher
from fewstep.learning.roles import frozen, trained
from fewstep.learning.weights import IntervalWeighting, counted_level, interval_weight


@dataclass(frozen=True)
class EasyConsistency(OptionalTeacher):
    """w d( f(x_t, t), sg f(x_r, r) ), w = 1/(t - r), with r moving from far below t towards t in
    `stages`.

    Stage a has r/t = max(0, 1 - q^-(a+1) n(t)), n(t) = 1 + k sigmoid(-b t), in units of
    sigma/alpha; q^-(a+1) is never below 1 - limit. x_r comes from the same sample and noise (solver
    None, as published), or from the teacher's step (a solver). Published for 64×64 images:
    distance=pseudo_huber, whose c is then 0.06, weighting=karras, q=4. Unlike the published code
    the boundary is at t_min, not at 0, and r stops there: the student can be exported, and its
    anchor is x at t_min instead of x0, which differ by noise of std t_min.
    """

    solver: OneStepSolver | None = None
    """The solver of the teacher's step from t to r; null: the same sample and noise."""
    density: Density = dataclasses.field(default_factory=lambda: LogNormal(-1.1, 2.0))
    """Of the time t."""
    distance: Distance = dataclasses.field(default_factory=lambda: PseudoHuber(0.0))
    """The distance of the two answers."""
    weighting: IntervalWeighting = "level_gap"
    """Weight of an interval."""
    q: Positive = 2.0
    """The factor by which 1 - r/t shrinks from stage to stage."""
    k: NonNegative = 8.0
    """How much further apart t and r are near the data."""
    b: Positive = 1.0
    """How fast that fades with sigma/alpha."""
    stages: Count = 8
    """Stages of the run, of equal length."""
    limit: Decay = 0.999
    """The largest r/t, 0 … 1."""
    guidance: GuidanceRange | None = None
    """Guidance of the teacher, in g-form: a number (1: none), or a range drawn per sample; null:
    the teacher's own. Needs a solver."""
    sample_times: Times = dataclasses.field(default_factory=lambda: Auto("t_min", rho=20.0))
    """Times of the few-step sampler that the student is saved with. end=t_data: the student ends at
    the data and not at t_min."""

    @dataclass
    class Nets:
        """The student and the frozen teacher, from whose weights it starts."""

        student: Denoiser = trained(exported=True)
        teacher: Denoiser = frozen()

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        boundary = model.denoiser.parameterization.boundary(self.sample_times.end)
        inputs = self.inputs(model)
        return self.Nets(clone("student", inputs=inputs, parameterization=boundary), model.denoiser)

    def inputs(self, model: Any) -> frozenset[str]:
        """What the student reads beside the teacher's inputs."""
        return frozenset() if self.solver is None else self.scales.inputs(model)

    @property
    def reads_length(self) -> bool:
        return self.stages > 1

    def share(self, clock: Clock) -> float:
        """q^-(a+1) of this stage: how far r is below t, relative to t, where t is large."""
        stage = min(self.stages - 1, clock.step * self.stages // clock.steps)
        return max(self.q ** -(stage + 1), 1 - self.limit)

    def lower(self, process: Process, t: Time, share: float) -> Time:
        """r; below t_min the end of the student takes its place."""
        level = counted_level(process, t)
        ratio = 1 - share * (1 + self.k * torch.sigmoid(-self.b * level))
        r = process.at_level(level * ratio.clamp(min=0))
        return torch.where(r < process.t_min, process.end(self.sample_times.end), r)

    def loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """One time and one noise per sample."""
        process = nets.student.process
        t = self.density(process, batch.draws).clamp(max=process.t_max)
        end = torch.full_like(t, process.t_min)
        # A little above the end, as a level: a table's first index is 0, which has no "a little
        # above".
        t = torch.maximum(t, process.at_level(1.001 * process.level(end)))
        r = self.lower(process, t, self.share(clock))
        teacher, cond = self.scales(nets.teacher, batch.cond, batch.draws.fork("guidance"))
        x_t, x_r = pair(self.solver, teacher, process, batch, t, r)
        distance = self.distance(*jump_and_goal(nets.student, nets.student, x_t, t, x_r, r, cond))
        w = interval_weight(self.weighting, process, t, r, nets.student)
        return Losses({"consistency": distance * w.to(distance)}, {"distance": distance})

    def sampler(self, clock: Clock, net: str = "student") -> Sampler:
        return Renoise(steps=2, times=self.sample_times)
