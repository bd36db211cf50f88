"""Consistency models in continuous time, sCM: by a teacher or by the data (Lu & Song 2024,
arXiv:2410.11081).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from fewstep.choice import NonNegative, Positive, kind_of
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.densities import Density, LogNormal
from fewstep.diffusion.samplers import Renoise, Sampler
from fewstep.diffusion.times import Times, Uniform
from fewstep.diffusion.types import per_sample, time_dtype
from fewstep.learning.batch import Batch
from fewstep.learning.guidance import GuidanceRange, GuidedBy
from fewstep.learning.losses import Squared
from fewstep.learning.method import Clock, Clone, Losses, Method, Update
from fewstep.learning.roles import frozen, trained
from fewstep.learning.tangent import (
    Forward,
    Point,
    Tangent,
    jump_and_rate,
    normalised,
    per_log_ratio,
    regressed,
    trajectory_rate,
    warmed,
)
from fewstep.learning.weights import data_share, sigma_data_of
from fewstep.models.heads import Uncertainty


@dataclass(frozen=True)
class ContinuousConsistency(Method):
    """‖F(x_t, t) - sg[F + g/(‖g‖ + floor)]‖² e^-u(t) + u(t), g = cos t df/dt: F moves so that f
    stays on a trajectory.

    Published for TrigFlow, where f = cos t x_t - sigma_data sin t F and t = atan2(sigma, sigma_data
    alpha). f, and its derivative in ln(sigma/alpha), are the same in every process, so it is
    computed in the teacher's own:

        g = [warm df/d ln(sigma/alpha) + (1 - warm) cos² t (f - x0)]/sin t

    where `warm` rises from 0 to 1 in the first `warmup` of the run (in steps, 10,000, as
    published); an EDM network's output is -F. velocity: "teacher" (sCD, with guidance) moves x_t
    along the teacher's trajectory and takes its x0, "data" (sCT) the sample itself. u: the learned
    log-variance, which makes all times count alike; False leaves it out. f ends at the data, where
    the student's prediction is the identity: it keeps the teacher's parameterization.
    """

    velocity: Literal["teacher", "data"] = "teacher"
    """Whose trajectory x_t follows: the teacher's (sCD) or the straight line from the sample
    (sCT)."""
    guidance: GuidanceRange | None = None
    """Guidance of the teacher, in g-form: a number (1: none), or a range drawn per sample; null:
    the teacher's own. Needs velocity=teacher."""
    density: Density = dataclasses.field(default_factory=lambda: LogNormal(-1.0, 1.8))
    """Of the training times."""
    sigma_data: Positive | None = None
    """Standard deviation of the data; null: as the teacher states it, else 0.5."""
    warmup: NonNegative = 0.1
    """Share of the run over which the derivative fades in."""
    floor: Positive = 0.1
    """Added to the norm by which the tangent is divided."""
    adaptive: bool = True
    """Learns the log-variance of the loss, which makes all times count alike."""
    tangent: Tangent = dataclasses.field(default_factory=Forward)
    """How the derivative of the student along the trajectory is computed."""
    sample_times: Times = dataclasses.field(default_factory=Uniform)
    """Times of the few-step sampler that the student is saved with."""

    def __post_init__(self) -> None:
        if self.velocity == "data" and self.scales != GuidanceRange():
            raise ValueError("guidance needs velocity=teacher")

    @property
    def guided_by(self) -> GuidedBy:
        return "teacher" if self.velocity == "teacher" else "nothing"

    @dataclass
    class Nets:
        """The student, the log-variance of its loss, and the frozen teacher."""

        student: Denoiser = trained(exported=True)
        uncertainty: nn.Module = trained()
        teacher: Denoiser = frozen()

    @property
    def reads_length(self) -> bool:
        return self.warmup > 0

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        student = clone("student", inputs=self.scales.inputs(model))
        process, of = student.own, student.parameterization
        skip, out, _ = of(
            process, torch.tensor([process.t_data, process.t_min], dtype=torch.float64)
        )
        if ((skip - 1).abs() + out.abs() > 1e-6).all():  # every constant f would solve df/dt = 0
            raise ValueError(
                f"{kind_of(type(of))} is not the identity at the data, from which this method "
                f"learns"
            )
        return self.Nets(student, Uncertainty(), model.denoiser)

    def updates(self, clock: Clock) -> Sequence[Update]:
        return [Update(("student", "uncertainty"), self.loss)]

    def loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """One time and one noise per sample."""
        process = nets.student.process
        t = self.density(process, batch.draws).clamp(process.t_min, process.t_max)
        x_t = process.add_noise(batch.data, batch.noise(), t)
        with torch.no_grad():
            x0, cond = batch.data, batch.cond
            if self.velocity == "teacher":
                teacher, cond = self.scales(nets.teacher, cond, batch.draws.fork("guidance"))
                x0 = teacher(x_t.to(time_dtype(x_t.device)), t, cond)
        rate = trajectory_rate(process, x_t, x0, t, per_log_ratio(process, t))
        jump, f, change = jump_and_rate(self.tangent, nets.student, Point(x_t, t), rate, cond)
        sigma_data = self.sigma_data or sigma_data_of(nets.student)
        scaled, sigma = sigma_data * data_share(process, t), process.sigma(t)
        radius = torch.hypot(scaled, sigma)
        sin, cos = sigma / radius, scaled / radius
        warm = warmed(clock, self.warmup)
        g = per_sample(warm / sin, f) * change + per_sample((1 - warm) * cos**2 / sin, f) * (f - x0)
        error = regressed(jump, normalised(g, self.floor), sigma_data * sin)
        distance = Squared()(error, torch.zeros_like(error))
        notes = {"tangent": torch.linalg.vector_norm(g.flatten(1), dim=1).float()}
        if not self.adaptive:
            return Losses({"consistency": distance}, notes)
        u = nets.uncertainty(process.angle(t)).to(distance)
        return Losses({"consistency": torch.exp(-u) * distance + u}, notes | {"distance": distance})

    def sampler(self, clock: Clock, net: str = "student") -> Sampler:
        """The middle time of 2 steps lies at sigma/alpha = 1, near the published 1.1 of TrigFlow
        (0.98).
        """
        return Renoise(steps=2, times=self.sample_times)
