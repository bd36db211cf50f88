"""Shortcut models: each jump is learned from two of half its length (Frans et al. 2024,
arXiv:2410.12557).
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fewstep.choice import Count, Decay, Share
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.guidance import doubled
from fewstep.diffusion.samplers import FlowMap, Sampler
from fewstep.diffusion.times import Auto, Strided, Times
from fewstep.diffusion.types import per_sample, time_dtype, to_device, where_rows
from fewstep.learning.batch import Batch
from fewstep.learning.dropout import without_dropout
from fewstep.learning.guidance import GuidanceRange, GuidedBy
from fewstep.learning.losses import Distance, Squared
from fewstep.learning.method import Clock, Clone, Losses
from fewstep.learning.roles import frozen, moved, trained
from fewstep.learning.slow_target import SlowTarget, target_of
from fewstep.learning.tangent import rectified


@dataclass(frozen=True)
class Shortcut(SlowTarget):
    """d( u(x_t, t, s), target ): a jump over 2^k intervals of a grid learns two jumps of the target
    over half as many.

    On a share `bootstrap` of the rows k = 1, 2, … and t are drawn evenly, and the target is a slow
    copy's two jumps; on the others one interval learns the velocity, of the data or of a teacher.
    So all jumps come to be chains of first-order steps over the finest grid. u = (x_t - x0)/t is
    the velocity of rectified flow, and s is the input that tells the length of the jump. guidance:
    of the teacher; for the data of the two jumps of one interval that k = 1 learns from: longer
    ones inherit it, and one interval itself stays without (it is not for sampling then).

    Departures: the lengths and which rows bootstrap are drawn per row (the official code cuts each
    batch into equal groups), nothing is clipped to ±4, and labels are dropped only where guidance
    needs it.
    """

    intervals: Count = 128
    """Intervals of the finest grid, a power of 2."""
    times: Times = dataclasses.field(default_factory=lambda: Auto("t_min"))
    """The finest grid."""
    velocity: Literal["data", "teacher"] = "data"
    """What one interval learns from: the sample and its noise, or the teacher."""
    bootstrap: Share = 0.25
    """Share of the rows that learn from two jumps of half the length, 0 … 1."""
    guidance: GuidanceRange | None = None
    """Guidance of the teacher or, for velocity=data, of the jumps of one interval from which longer
    ones learn, in g-form: a number (1: none), or a range drawn per sample; null: the teacher's
    own."""
    label_dropout: Share = 0.1
    """Share of the rows that lose their label where guidance needs it, 0 … 1."""
    distance: Distance = dataclasses.field(default_factory=Squared)
    """The distance of the regression."""
    target_decay: Decay = 0.999

    def __post_init__(self) -> None:
        if self.intervals < 2 or self.intervals & (self.intervals - 1):
            raise ValueError(f"intervals={self.intervals} must be a power of 2, at least 2")

    @property
    def guided_by(self) -> GuidedBy:
        return "teacher" if self.velocity == "teacher" else "student"

    @dataclass
    class Nets:
        """The student, its slow copy where it has one, and the frozen teacher, from whose
        weights it starts.
        """

        student: Denoiser = trained(exported=True)
        target: Denoiser | None = moved()
        teacher: Denoiser = frozen()

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        inputs = {"s"} | self.scales.inputs(model)
        student = clone("student", inputs=inputs)
        target = self.slow_copy(clone, inputs=inputs)
        return self.Nets(student, target, model.denoiser)

    def loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """One jump and one noise per sample."""
        process, draws = nets.student.process, batch.draws
        grid = self.times(process, self.intervals)
        grid = to_device(grid, draws.device, time_dtype(draws.device))
        doubles = draws.uniform() < self.bootstrap
        level = torch.where(doubles, 1 + draws.integers(int(math.log2(self.intervals))), 0)
        length = 2**level
        first = (draws.uniform() * (self.intervals // length)).long() * length
        t, middle, s = grid[first], grid[first + length // 2], grid[first + length]
        guides = self.velocity == "data" and not self.scales.plain
        cond = batch.cond.dropped(self.label_dropout, draws) if guides else batch.cond
        scale = self.scales.scale(draws.fork("guidance"))
        cond = self.scales.told(cond, scale)
        x_t = process.add_noise(batch.data, batch.noise(), t)
        # Rows that do not bootstrap go through the same passes, unread: their number must not
        # decide who meets whom.
        slow = target_of(nets)
        with torch.no_grad(), without_dropout(slow):
            x = x_t.to(time_dtype(x_t.device))
            plain = batch.data
            if self.velocity == "teacher":
                plain = self.scales.guided(nets.teacher, scale)(x, t, cond)
            joined = torch.where(level == 1, scale, 1.0)
            target = doubled(slow, joined) if guides else slow
            half = process.step(x, target(x, t, cond, middle), t, middle)
            end = process.step(half, target(half, middle, cond, s), middle, s)
            goal = where_rows(doubles, process.x0_between(x, end, t, s), plain.to(x))
        weight = 1 / rectified(process, t)
        jump, goal = (
            per_sample(weight, x0) * x0 for x0 in (nets.student(x_t, t, cond, s), goal.to(x_t))
        )
        distance = self.distance(jump, goal)
        share = doubles.to(distance)
        return Losses(
            {"shortcut": distance}, {"bootstrap": share * distance, "one": (1 - share) * distance}
        )

    def sampler(self, clock: Clock, net: str = "student") -> Sampler:
        return FlowMap(steps=4, times=Strided(self.times, self.intervals))

    def serves(self, steps: int) -> bool:
        return self.intervals % steps == 0
