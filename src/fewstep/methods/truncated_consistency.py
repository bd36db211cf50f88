"""Truncated consistency models (Lee et al. 2024, arXiv:2410.14895): a second stage for the noisy
times alone.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fewstep.choice import Decay, NonNegative, Positive
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.densities import LogStudent
from fewstep.diffusion.process import Process
from fewstep.diffusion.samplers import Renoise, Sampler
from fewstep.diffusion.times import Above, Times
from fewstep.diffusion.types import Time, to_device, where_rows
from fewstep.learning.averaging import ema_update
from fewstep.learning.batch import Batch
from fewstep.learning.consistency import pair
from fewstep.learning.dropout import SharedDropout
from fewstep.learning.method import Clock, Clone, Losses, Method, Update
from fewstep.learning.roles import moved
from fewstep.learning.weights import interval_weight
from fewstep.methods.easy_consistency import EasyConsistency


@dataclass(frozen=True)
class TruncatedConsistency(Method):
    """w d( f(x_t, t), sg f_mix(x_r, r) ) for t from `edge` up; f_mix is the frozen `first` below
    the edge, else f.

    For `share` of the run the student learns by `easy`; then `first` becomes a copy of it, and the
    student needs to know only the times from the edge (in sigma/alpha) up. share=0 begins with
    that, from a finished student (`start=`). r is as close to t as easy.limit says. ln(sigma/alpha)
    of t follows Student's t from the edge on; a row is instead put on the edge with probability
    `edge_probability`: there the goal is always first's. The published loss, the mean over the
    other rows + edge_weight · the mean over these, needs two counts over the batch; here each row
    is divided by its probability instead of its share, which is the same on average. `first` has
    the dropout masks of the student.
    """

    holds: ClassVar[str] = "easy"

    easy: EasyConsistency = dataclasses.field(default_factory=EasyConsistency)
    """The first stage, and what both stages share."""
    share: Decay = 0.5
    """Share of the run that the first stage takes; 0 begins with the second."""
    edge: Positive = 1.0
    """The level sigma/alpha from which on the second stage trains."""
    df: Positive = 0.01
    """Degrees of freedom of the density above the edge."""
    std: Positive = 0.2
    """Scale of ln(sigma/alpha) above the edge."""
    edge_probability: Decay = 0.25
    """Probability of a row to be put on the edge."""
    edge_weight: NonNegative = 0.1
    """Weight of the rows on the edge."""

    @dataclass
    class Nets(EasyConsistency.Nets):
        """The student, what it was at the end of its first stage, and the teacher."""

        first: Denoiser = moved()

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        process = model.denoiser.process
        low, edge, high = process.t_min, self.edge_of(process).item(), process.t_max
        if not low < edge < high:
            raise ValueError(
                f"edge={self.edge:g} is t={edge:g}, not between {low:g} and {high:g}, the "
                f"teacher's times"
            )
        boundary = model.denoiser.parameterization.boundary(self.easy.sample_times.end)
        inputs = self.easy.inputs(model)
        student = clone("student", inputs=inputs, parameterization=boundary)
        first = clone("first", inputs=inputs, parameterization=boundary)
        return self.Nets(student, model.denoiser, first)

    def phases(self, steps: int) -> Sequence[int]:
        if not self.share:
            return (0,)
        if not (begin := int(steps * self.share)):
            raise ValueError(f"{steps} training steps are too few for two stages")
        return (0, begin)

    def updates(self, clock: Clock) -> Sequence[Update]:
        if self.share and clock.phase == 0:
            return [Update(("student",), self.easy_loss)]
        return super().updates(clock)

    def edge_of(self, process: Process) -> Time:
        """The edge as a time of the process, (1,)."""
        return process.at_level(torch.tensor([self.edge], dtype=torch.float64))

    def easy_loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """Easy consistency, all of its stages within the first phase."""
        stages = clock._replace(step=clock.phase_step, steps=clock.phase_steps)
        return self.easy.loss(nets, batch, stages)

    def loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """One time and one noise per sample."""
        process = nets.student.process
        density = LogStudent(self.df, math.log(self.edge), self.std, self.edge)
        t = density(process, batch.draws)
        edge = to_device(self.edge_of(process), t.device, t.dtype)
        at_edge = batch.draws.uniform() < self.edge_probability
        t = torch.where(at_edge, edge, torch.maximum(t, edge))
        r = self.easy.lower(process, t, 1 - self.easy.limit)
        scales, draws = self.easy.scales, batch.draws.fork("guidance")
        teacher, cond = scales(nets.teacher, batch.cond, draws)
        x_t, x_r = pair(self.easy.solver, teacher, process, batch, t, r)
        masks = SharedDropout(x_t.device)
        with masks:
            jump = nets.student(x_t, t, cond)
        with torch.no_grad():
            # Both see all rows: which of them lie below the edge is known on the device alone.
            with masks:
                early = nets.first(x_r, r, cond)
            with masks:
                late = nets.student(x_r, r, cond)
            goal = where_rows(r < edge, early, late)
        distance = self.easy.distance(jump, goal)
        part = torch.where(
            at_edge,
            self.edge_weight / max(self.edge_probability, 1e-9),
            1 / (1 - self.edge_probability),
        ).to(t)
        w = part * interval_weight(self.easy.weighting, process, t, r, nets.student)
        return Losses({"consistency": distance * w.to(distance)}, {"distance": distance})

    def after_step(self, nets: Nets, clock: Clock) -> None:
        if self.share and clock.phase == 0 and clock.phase_step == clock.phase_steps - 1:
            ema_update(nets.first, nets.student, 0.0)

    def sampler(self, clock: Clock, net: str = "student") -> Sampler:
        times = self.easy.sample_times
        to_edge: Times = dataclasses.replace(times, end="t_min")  # type: ignore[type-var]
        return Renoise(steps=2, times=Above(self.edge, to_edge, times.end))
