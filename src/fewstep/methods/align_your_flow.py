"""Align your flow: flow maps distilled in continuous time (Sabour et al. 2025,
arXiv:2506.14603).
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fewstep.choice import NonNegative, Positive, Share
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.densities import Density, LogitNormal
from fewstep.diffusion.samplers import FlowMap, Sampler
from fewstep.diffusion.times import Times, Uniform
from fewstep.diffusion.types import per_sample, time_dtype
from fewstep.learning.batch import Batch
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.losses import Distance, Squared
from fewstep.learning.method import Clock, Clone, Losses, Method
from fewstep.learning.roles import frozen, trained
from fewstep.learning.tangent import (
    Forward,
    Point,
    Tangent,
    flow_error,
    jump_and_rate,
    normalised,
    ordered,
    per_rectified,
    rectified,
    regressed,
    warmed,
)


@dataclass(frozen=True)
class AlignYourFlow(Method):
    """d( F, sg[F + g/(‖g‖ + floor)] ) for the flow map f(x_t, t, s) = x_t - (t - s) F(x_t, t, s) of
    rectified flow.

    side "eulerian": g = df/dt along the teacher's trajectory, on which the end of the jump must not
    move: v - F - (t - s) dF/dt, its second term times `warm`, which rises from 0 to `warm_limit` in
    the first `warmup` of the run. "lagrangian": g = v(f, s) + (t - s) dF/ds - F, without warm-up,
    which vanishes where df/ds is the teacher's velocity at the point reached; the authors found it
    the weaker one.

    The student predicts the x0 = x_t - t F with which one `Process.step` makes the jump, so any
    process will do (see mean_flow.py). How the authors draw (t, s) is not known to us: as mean
    flows do. Their guidance by a weaker teacher and their adversarial tuning are left out;
    guidance is the classifier-free one.
    """

    side: Literal["eulerian", "lagrangian"] = "eulerian"
    """Which end of the jump the derivative moves: its start (eulerian) or its target
    (lagrangian)."""
    guidance: GuidanceRange | None = None
    density: Density = dataclasses.field(default_factory=lambda: LogitNormal(-0.6, 1.6))
    """Of the time t at which a jump starts."""
    target_density: Density = dataclasses.field(default_factory=lambda: LogitNormal(-4.0, 1.6))
    """Of the time s at which it ends; s is never above t."""
    equal: Share = 0.0
    """Share of the rows with s = t, 0 … 1."""
    warmup: NonNegative = 0.1
    """Share of the run over which the unstable part of the derivative fades in."""
    warm_limit: Share = 0.99
    """The largest weight of that part, 0 … 1."""
    floor: Positive = 0.1
    """Added to the norm by which the tangent is divided."""
    distance: Distance = dataclasses.field(default_factory=Squared)
    """The distance of the regression."""
    tangent: Tangent = dataclasses.field(default_factory=Forward)
    """How the derivative of the student along the trajectory is computed."""
    sample_times: Times = dataclasses.field(default_factory=lambda: Uniform("t_min"))
    """Times of the few-step sampler that the student is saved with."""

    @dataclass
    class Nets:
        """The student and the frozen teacher."""

        student: Denoiser = trained(exported=True)
        teacher: Denoiser = frozen()

    @property
    def reads_length(self) -> bool:
        return self.warmup > 0

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        inputs = {"s"} | self.scales.inputs(model)
        return self.Nets(clone("student", inputs=inputs), model.denoiser)

    def loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """One pair of times and one noise per sample."""
        process = nets.student.process
        teacher, cond = self.scales(nets.teacher, batch.cond, batch.draws.fork("guidance"))
        t, s = ordered(process, batch.draws, self.density, self.target_density, self.equal)
        x_t = process.add_noise(batch.data, batch.noise(), t)
        late, early = rectified(process, t), rectified(process, s)
        wide, at = x_t.to(time_dtype(x_t.device)), Point(x_t, t, s)
        if self.side == "eulerian":
            with torch.no_grad():
                x0 = teacher(wide, t, cond)
            warm = self.warm_limit * warmed(clock, self.warmup)
            jump, g = flow_error(self.tangent, nets.student, at, x0, cond, warm)
        else:
            rate = Point(torch.zeros_like(wide), torch.zeros_like(t), per_rectified(process, s))
            jump, seen, change = jump_and_rate(self.tangent, nets.student, at, rate, cond)
            with torch.no_grad():
                x0 = teacher(process.step(wide, seen, t, s), s, cond)
            # In rectified flow v - F, at the point reached, is the student's x0 less the teacher's,
            # over s.
            g = (
                per_sample(1 / early, seen) * (seen - x0)
                - per_sample((late - early) / late, seen) * change
            )
        error = regressed(jump, normalised(g, self.floor), late)
        size = torch.linalg.vector_norm(g.flatten(1), dim=1).float()
        return Losses({"map": self.distance(error, torch.zeros_like(error))}, {"tangent": size})

    def sampler(self, clock: Clock, net: str = "student") -> Sampler:
        return FlowMap(steps=2, times=self.sample_times)
