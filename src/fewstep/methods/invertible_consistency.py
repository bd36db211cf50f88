"""Invertible consistency distillation (Starodubcev et al. 2024, arXiv:2406.14539): a student for
each direction.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fewstep.choice import NonNegative
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.process import Process
from fewstep.diffusion.samplers import FlowMap, Sampler
from fewstep.diffusion.types import Sample, Time
from fewstep.learning.batch import Batch
from fewstep.learning.consistency import (
    adjacent,
    at_or_above,
    at_or_below,
    compared,
    jump_and_goal,
    jump_to,
    pair,
)
from fewstep.learning.method import Clock, Clone, Losses, Method, Update
from fewstep.learning.roles import frozen, trained
from fewstep.methods.multi_boundary import MultiBoundary


@dataclass(frozen=True)
class InvertibleConsistency(Method):
    """`reverse` trains the student downwards; `encoder`, a network of its own, learns the way up,
    without guidance: d( J(x_s; s -> e), sg J(x_t; t -> e) ), where x_t is the teacher's step up
    from x_s and e the smallest boundary not below t. It starts one interval above the end, where
    there is noise to see.

    Two more updates, steps of their own as released, count by `cycle`.
    `encoder` must undo the student's jump over a whole segment; behind a jump of `encoder` the
    student must answer as it does before it. Both without guidance, so a student that cannot be
    told so must not be guided. The lowest segment lies between the data, where the student ends,
    and the lifted end, where `encoder` begins: there the second pair is compared at the student's
    own end, and the first is left out (released: both at the lifted end, where the exact pair is
    not stationary). Encode with `sampler.encoded(encoder.denoiser, …)` of the saved `encoder`,
    decode with the student.
    """

    holds: ClassVar[str] = "reverse"

    reverse: MultiBoundary = dataclasses.field(default_factory=MultiBoundary)
    """The student's own training, downwards."""
    cycle: NonNegative = 1.5
    """Weight of the two updates that tie the networks to each other; 0 leaves them out."""

    def __post_init__(self) -> None:
        one = self.reverse.scales
        if self.cycle and not one.embed and not one.plain:
            raise ValueError(
                "a guided student that does not read its guidance cannot undo an unguided jump: "
                "set cycle=0"
            )

    @dataclass
    class Nets:
        """The student (down), the network for the way up, and the frozen teacher."""

        student: Denoiser = trained(exported=True)
        encoder: Denoiser = trained(exported=True)
        teacher: Denoiser = frozen()

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        down = self.reverse.build_nets(model, clone)
        # ValueError where the encoder has no segments.
        self.reverse.ends(model.denoiser.process, lifted=True)
        inputs = self.reverse.scales.inputs(model)
        encoder = clone("encoder", of=model.denoiser, inputs=inputs)
        return self.Nets(down.student, encoder, model.denoiser)

    def updates(self, clock: Clock) -> Sequence[Update]:
        both = [
            Update(("student",), self.loss),
            Update(("encoder",), self.encoder_loss),
        ]
        if self.cycle and self.reverse.steps > 1:
            both.append(Update(("encoder",), self.up_again_loss))
        return [*both, Update(("student",), self.down_again_loss)] if self.cycle else both

    def loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """The way down."""
        return self.reverse.loss(nets, batch, clock)

    def encoder_loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """One interval and one noise per sample, upwards."""
        one, process = self.reverse, nets.teacher.process
        t, s = adjacent(one.times(process, one.bins)[:-1], batch.draws, process)
        end = at_or_above(one.ends(process), t)
        alone = dataclasses.replace(one.scales, low=1.0, high=1.0)
        teacher, cond = alone(nets.teacher, batch.cond, batch.draws)
        x_s, x_t = pair(one.solver, teacher, process, batch, s, t)
        encoder = jump_to(nets.encoder, process, end)
        jump, goal = jump_and_goal(encoder, encoder, x_s, s, x_t, t, cond)
        return Losses({"encoder": compared(one.distance, process, jump, goal, end)})

    def up_again_loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """From the top of a segment, but the lowest, down with the student, and up again."""
        process = nets.teacher.process
        top, low = adjacent(self.reverse.ends(process)[:-1], batch.draws, process)
        cond, x = self.start(batch, process, top)
        with torch.no_grad():
            moved = jump_to(nets.student, process, low)(x, top, cond)
        again = jump_to(nets.encoder, process, top)(moved, low, cond)
        return Losses(
            {"up_again": self.cycle * compared(self.reverse.distance, process, again, x, top)}
        )

    def down_again_loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """From the low end of a segment up with `encoder`, and down to where the student comes from
        there.
        """
        process = nets.teacher.process
        top, low = adjacent(self.reverse.ends(process, lifted=True), batch.draws, process)
        cond, x = self.start(batch, process, low)
        end = at_or_below(self.reverse.ends(process), low)
        student = jump_to(nets.student, process, end)
        with torch.no_grad():
            moved = jump_to(nets.encoder, process, top)(x, low, cond)
        again, goal = jump_and_goal(student, student, moved, top, x, low, cond)
        return Losses(
            {"down_again": self.cycle * compared(self.reverse.distance, process, again, goal, end)}
        )

    def start(self, batch: Batch, process: Process, t: Time) -> tuple[Cond, Sample]:
        """The condition without guidance, and a sample at t."""
        cond = self.reverse.scales.told(batch.cond, torch.ones_like(t))
        return cond, process.add_noise(batch.data, batch.noise(), t)

    def sampler(self, clock: Clock, net: str = "student") -> Sampler:
        return FlowMap(self.reverse.steps, self.reverse.grid(lifted=net == "encoder"))

    def serves(self, steps: int) -> bool:
        return self.reverse.serves(steps)

    def for_steps(self, steps: int) -> Method:
        return dataclasses.replace(self, reverse=self.reverse.for_steps(steps))
