"""Mean flows: the average velocity between two times, learned from the data or a teacher
(arXiv:2505.13447).
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fewstep.choice import Decay, Share
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.densities import Density, LogitNormal
from fewstep.diffusion.samplers import FlowMap, Sampler
from fewstep.diffusion.times import Times, Uniform
from fewstep.diffusion.types import Sample, Time, per_sample, time_dtype, where_rows
from fewstep.learning.batch import Batch
from fewstep.learning.dropout import without_dropout
from fewstep.learning.guidance import GuidanceRange, GuidedBy
from fewstep.learning.losses import AdaptivePower, Distance
from fewstep.learning.method import Clock, Clone, Losses, Method
from fewstep.learning.roles import frozen, trained
from fewstep.learning.tangent import (
    Forward,
    Point,
    Tangent,
    flow_error,
    ordered,
    rectified,
    regressed,
)


@dataclass(frozen=True)
class MeanFlow(Method):
    """d( u(x_t, t, s), sg[v - (t - s) du/dt] ): the average velocity u from t to s, for rectified
    flow.

    The student predicts the x0 with which one `Process.step` goes from x_t to x_s. In rectified
    flow that is u = (x_t - x0)/t; in every other process the same student makes the same jump, and
    its error differs from the one above by a factor of (t, s) alone. So any teacher can be used,
    with the error weighted as in rectified flow.

    A share `equal` of the rows has s = t, plain flow matching; the others s = min(t, its own draw),
    as in the authors' PyTorch code. velocity: "data" (noise - x0, as published) or "teacher".
    guidance g: of the velocity that is learned, so that sampling needs one evaluation. For
    the data that is w (noise - x0) + mix u(x, t, t) + (1 - w - mix) u_null(x, t, t) with w = g (1 -
    mix); a share `label_dropout` of rows loses its label and keeps the plain velocity. The
    published limits of the times that are guided are left out. u and u_null have no dropout there.
    """

    velocity: Literal["data", "teacher"] = "data"
    """What the velocity is made of: the sample and its noise, or the teacher."""
    density: Density = dataclasses.field(default_factory=lambda: LogitNormal(-0.6, 1.6))
    """Of the time t at which a jump starts."""
    target_density: Density = dataclasses.field(default_factory=lambda: LogitNormal(-4.0, 1.6))
    """Of the time s at which it ends; s is never above t."""
    equal: Share = 0.25
    """Share of the rows with s = t, plain flow matching, 0 … 1."""
    distance: Distance = dataclasses.field(default_factory=AdaptivePower)
    """The distance of the regression."""
    guidance: GuidanceRange | None = None
    mix: Decay = 0.0
    """Share of the student's own velocity in the guided one, for velocity=data."""
    label_dropout: Share = 0.1
    """Share of the rows that lose their label where guidance needs it, 0 … 1."""
    tangent: Tangent = dataclasses.field(default_factory=Forward)
    """How the derivative of the student along the trajectory is computed."""
    sample_times: Times = dataclasses.field(default_factory=lambda: Uniform("t_min"))
    """Times of the few-step sampler that the student is saved with."""

    def __post_init__(self) -> None:
        if self.mix and self.velocity == "teacher":
            raise ValueError("mix is for velocity=data: a teacher is guided by its own two answers")
        if not self.scales.low:
            raise ValueError("guidance must be above 0, else nothing of the sample is learned")

    @property
    def guided_by(self) -> GuidedBy:
        return "teacher" if self.velocity == "teacher" else "student"

    @dataclass
    class Nets:
        """The student and the frozen teacher, from whose weights it starts."""

        student: Denoiser = trained(exported=True)
        teacher: Denoiser = frozen()

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        inputs = {"s"} | self.scales.inputs(model)
        return self.Nets(clone("student", inputs=inputs), model.denoiser)

    def loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """One pair of times and one noise per sample."""
        process, draws = nets.student.process, batch.draws
        t, s = ordered(process, draws, self.density, self.target_density, self.equal)
        guides = self.velocity == "data" and not self.scales.plain
        cond = batch.cond.dropped(self.label_dropout, draws) if guides else batch.cond
        scale = self.scales.scale(draws.fork("guidance"))
        cond = self.scales.told(cond, scale)
        x_t = process.add_noise(batch.data, batch.noise(), t)
        x0 = self.clean(nets, x_t, t, batch.data, cond, scale)
        jump, error = flow_error(self.tangent, nets.student, Point(x_t, t, s), x0, cond)
        error = regressed(jump, error, rectified(process, t))
        nothing = torch.zeros_like(error)
        return Losses(
            {"flow": self.distance(error, nothing)},
            {"distance": error.detach().square().flatten(1).mean(1)},
        )

    @torch.no_grad()
    def clean(
        self, nets: Nets, x_t: Sample, t: Time, x0: Sample, cond: Cond, scale: Time
    ) -> Sample:
        """The x0 to which the velocity that is learned points: (x - x0)/t in rectified flow."""
        wide = x_t.to(time_dtype(x_t.device))
        if self.velocity == "teacher":
            return self.scales.guided(nets.teacher, scale)(wide, t, cond)
        if self.scales.plain and not self.mix:
            return x0
        w = per_sample(scale * (1 - self.mix), wide)
        with without_dropout(nets.student):
            mixed = w * x0 + self.mix * nets.student(wide, t, cond, t)
            if self.scales.plain:
                return mixed
            mixed = mixed + (1 - w - self.mix) * nets.student(wide, t, cond.unconditional(), t)
        return where_rows(cond.is_null(), x0.to(mixed), mixed)

    def sampler(self, clock: Clock, net: str = "student") -> Sampler:
        return FlowMap(steps=1, times=self.sample_times)
