"""Easy consistency tuning (Geng et al. 2024, arXiv:2406.14548), with a step by the data or by the teacher."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fewstep.choice import Count, NonNegative, Positive
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.process import Process
from fewstep.diffusion.samplers import Renoise, Sampler
from fewstep.diffusion.solvers import Solver
from fewstep.diffusion.times import Auto, Density, LogNormal, Times
from fewstep.diffusion.types import Time
from fewstep.learning.batch import Batch
from fewstep.learning.consistency import gap, jump_and_goal
from fewstep.learning.losses import Metric, PseudoHuber
from fewstep.learning.method import Clock, Clone, Losses, Method, Update


@dataclass(frozen=True)
class EasyConsistency(Method):
    """d( f(x_t, t), sg f(x_r, r) )/(t - r), with r moving from far below t towards t in `stages`.

    Stage a has r/t = max(0, 1 - q^-(a+1) n(t)), n(t) = 1 + k sigmoid(-b t), in units of sigma/alpha. x_r comes from the
    same sample and noise (solver None, as published), or from the teacher's step (a solver). Unlike the published
    code the boundary is at t_min, not at 0, and r stops there: the student can be exported, and its
    anchor is x at t_min instead of x0, which differ by noise of std t_min.
    """

    solver: Solver | None = None
    density: Density = dataclasses.field(default_factory=lambda: LogNormal(-1.1, 2.0))
    metric: Metric = dataclasses.field(default_factory=lambda: PseudoHuber(0.0))
    q: Positive = 2.0
    k: NonNegative = 8.0
    b: Positive = 1.0
    stages: Count = 8
    sample_times: Times = dataclasses.field(default_factory=lambda: Auto("t_min", rho=20.0))

    @dataclass
    class Nets:
        """The student and the frozen teacher, from whose weights it starts."""

        student: Denoiser
        teacher: Denoiser

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        student = clone("student", parameterization=model.denoiser.parameterization.boundary())
        return self.Nets(student, model.denoiser)

    def updates(self, clock: Clock) -> Sequence[Update]:
        return [Update(("student",), self.consistency_loss)]

    def lower(self, process: Process, t: Time, clock: Clock) -> Time:
        """r of this stage, at least t_min."""
        stage = min(self.stages - 1, clock.step * self.stages // clock.steps)
        level = torch.tan(process.angle(t))
        share = 1 - self.q ** -(stage + 1) * (1 + self.k * torch.sigmoid(-self.b * level))
        return process.time_of(torch.atan(level * share.clamp(min=0))).clamp(min=process.t_min)

    def consistency_loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """One time and one noise per sample."""
        process = nets.student.process
        t = self.density(process, batch.draws).clamp(process.t_min * 1.001, process.t_max)
        r = self.lower(process, t, clock)
        x0, noise = batch.data, batch.noise()
        x_t = process.add_noise(x0, noise, t)
        with torch.no_grad():
            x_r = process.add_noise(x0, noise, r)
            if self.solver is not None:
                x_r = self.solver(nets.teacher, process, x_t, t, r, batch.cond)
        distance = self.metric(*jump_and_goal(nets.student, nets.student, x_t, t, x_r, r, batch.cond))
        return Losses({"consistency": distance / gap(process, t, r).to(distance)}, {"distance": distance})

    def sampler(self, clock: Clock, net: str = "student") -> Sampler:
        return Renoise(steps=2, times=self.sample_times)
