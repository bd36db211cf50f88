"""Invertible consistency distillation (Starodubcev et al. 2024, arXiv:2406.14539): a student for each direction."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fewstep.choice import NonNegative
from fewstep.diffusion.denoiser import Denoise, Denoiser
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.samplers import FlowMap, Sampler
from fewstep.diffusion.types import Sample, Time
from fewstep.learning.batch import Batch
from fewstep.learning.consistency import adjacent, at_or_above, compared, jump_and_goal, landing, pair
from fewstep.learning.method import Clock, Clone, Losses, Method, Update
from fewstep.methods.multi_boundary import MultiBoundary


@dataclass(frozen=True)
class InvertibleConsistency(Method):
    """`reverse` trains the student downwards; `forward`, a network of its own, learns the way up, without guidance:
    d( J(x_s; s -> e), sg J(x_t; t -> e) ), where x_t is the teacher's step up from x_s and e the smallest boundary not
    below t. It starts one interval above the end, where there is noise to see.

    cycle: the weight of two more updates. Each network must undo the other's jump over a whole segment, the student
    unguided; 0 leaves them out. All are steps of their own, as released (where one switch serves both). Encode with
    `sampler.encoded(forward.denoiser, …)` of the saved `forward`, decode from that noise with the student.
    """

    trains: ClassVar[tuple[str, ...]] = ("student", "forward")
    exports: ClassVar[tuple[str, ...]] = ("student", "forward")

    reverse: MultiBoundary = dataclasses.field(default_factory=MultiBoundary)
    cycle: NonNegative = 1.5

    @dataclass
    class Nets:
        """The student (down), the network for the way up, and the frozen teacher."""

        student: Denoiser
        forward: Denoiser
        teacher: Denoiser

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        down = self.reverse.build_nets(model, clone)
        inputs = self.reverse.guided.inputs(model)
        return self.Nets(down.student, clone("forward", of=model.denoiser, inputs=inputs), model.denoiser)

    def updates(self, clock: Clock) -> Sequence[Update]:
        both = [Update(("student",), self.reverse.consistency_loss), Update(("forward",), self.forward_loss)]
        if not self.cycle:
            return both
        return [*both, Update(("forward",), self.up_again_loss), Update(("student",), self.down_again_loss)]

    def forward_loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """One interval and one noise per sample, upwards."""
        one, process = self.reverse, nets.teacher.process
        t, s = adjacent(one.times(process, one.bins)[:-1], batch.draws, process)
        end = at_or_above(one.ends(process), t)
        teacher, cond = dataclasses.replace(one.guided, low=1.0, high=1.0)(nets.teacher, batch)
        x_s, x_t = pair(one.solver, teacher, process, batch, s, t)
        forward = landing(nets.forward, process, end)
        jump, goal = jump_and_goal(forward, forward, x_s, s, x_t, t, cond)
        return Losses({"forward": compared(one.metric, process, jump, goal, end)})

    def up_again_loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """From a segment's top down with the student, and up again."""
        process = nets.teacher.process
        top, low = adjacent(self.reverse.ends(process, lifted=True), batch.draws, process)
        return Losses({"up_again": self.cycle * self.there_and_back(nets.student, nets.forward, nets, batch, top, low)})

    def down_again_loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """From a segment's low end up with `forward`, and down again."""
        process = nets.teacher.process
        top, low = adjacent(self.reverse.ends(process, lifted=True), batch.draws, process)
        lost = self.there_and_back(nets.forward, nets.student, nets, batch, low, top)
        return Losses({"down_again": self.cycle * lost})

    def there_and_back(self, there: Denoise, back: Denoise, nets: Nets, batch: Batch, start: Time, end: Time) -> Time:
        """How far from x_start the second network lands behind the first's jump to `end`."""
        process = nets.teacher.process
        cond = self.reverse.guided.told(batch.cond, torch.ones_like(start))
        x: Sample = process.add_noise(batch.data, batch.noise(), start)
        with torch.no_grad():
            moved = landing(there, process, end)(x, start, cond)
        again = landing(back, process, start)(moved, end, cond)
        return compared(self.reverse.metric, process, again, x, start)

    def sampler(self, clock: Clock, net: str = "student") -> Sampler:
        return FlowMap(self.reverse.steps, self.reverse.grid(lifted=net == "forward"))

    def guidance(self) -> Guidance:
        return self.reverse.guided.meaning
