"""Improved distribution matching distillation (Yin et al. 2024, arXiv:2405.14867; DMD:
arXiv:2311.18828).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.choice import Count, NonNegative
from fewstep.diffusion.denoiser import Denoise, Denoiser
from fewstep.diffusion.densities import Along, Density
from fewstep.diffusion.samplers import Renoise, Sampler, renoised
from fewstep.diffusion.times import Auto, Times
from fewstep.diffusion.types import Sample, Time, per_sample
from fewstep.learning.batch import Batch
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.losses import Squared
from fewstep.learning.method import Clock, Clone, Losses, Method, Update
from fewstep.learning.roles import frozen, trained
from fewstep.learning.weights import weight
from fewstep.models.heads import Head


@dataclass(frozen=True)
class DMD2(Method):
    """The student's samples x move along x^_real - x^_fake: what the teacher, and what a denoiser
    of the student's own samples (`fake`), see behind the same noised x_t, over mean |x - x^_real|.
    `fake` learns `fake_steps` times a step.

    The adversarial loss is on noised images, and its head reads fake's features. With more than one
    step the student also learns at the later times of its sampler, from what its own earlier steps
    make of noise (backward simulation).
    """

    without_data: ClassVar[str] = "method.gan=0 method.gan_fake=0"
    fake_steps: Count = 5
    """Updates of the fake denoiser for each of the student's."""
    steps: Count = 1
    """Steps of the student; it learns at all of them."""
    gan: NonNegative = 3e-3
    """Weight of the adversarial loss in the student's."""
    gan_fake: NonNegative = 1e-2
    """Weight of the discriminator's loss; 0: no image of the data is read."""
    guidance: GuidanceRange | None = None
    density: Density = dataclasses.field(default_factory=lambda: Along(low=0.02, high=0.98))
    """Of the times at which the two scores are compared."""
    fake_density: Density = dataclasses.field(default_factory=Along)
    """Of the times of the fake denoiser and the discriminator."""
    sample_times: Times = dataclasses.field(default_factory=lambda: Auto("t_min", rho=20.0))
    """Times of the student's sampler, in training too. end=t_data: jumps end at the data."""

    @dataclass
    class Nets:
        """The student, the denoiser of its samples with the discriminator's head, and the frozen
        teacher.
        """

        student: Denoiser = trained(exported=True)
        fake: Denoiser = trained()
        head: nn.Module = trained()
        teacher: Denoiser = frozen(twin=True)  # of fake: at the beginning their difference is 0

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        inputs = self.scales.inputs(model)
        # Dropout masks would be noise in the difference of two scores.
        student = clone("student", inputs=inputs, dropout=0.0)
        before = student.parameterization  # whatever the student starts from
        student.parameterization = before.boundary(self.sample_times.end)
        fake = clone("fake", of=model.denoiser, inputs=inputs, dropout=0.0)
        (channels,) = fake.network.taps.values()  # type: ignore[operator]
        return self.Nets(student, fake, Head(channels), model.denoiser)

    @property
    def needs(self) -> frozenset[str]:
        """Without adversarial terms no image is read."""
        return frozenset({"x0"} if self.gan_fake else ())

    def updates(self, clock: Clock) -> Sequence[Update]:
        fake = Update(("fake", "head"), self.fake_loss)
        return [fake] * self.fake_steps + [Update(("student",), self.loss)]

    def made(self, student: Denoiser, batch: Batch) -> Sample:
        """Samples of the student, with the gradient of their last evaluation."""
        process = student.process
        *grid, end = (
            t.expand(len(batch.draws.rows)) for t in self.sample_times(process, self.steps)
        )
        last = batch.draws.choice(self.steps)
        x_t = process.prior(batch.noise())
        for t, s in zip(grid[:last], grid[1:]):
            with torch.no_grad():
                x_t = renoised(process, student(x_t, t, batch.cond), batch.noise(), end, s)
        return student(x_t, grid[last], batch.cond)

    def guided(self, nets: Nets, batch: Batch) -> tuple[Denoise, Batch]:
        """The guided teacher, and the batch with the scales that the others read."""
        teacher, cond = self.scales(nets.teacher, batch.cond, batch.draws.fork("guidance"))
        return teacher, dataclasses.replace(batch, cond=cond)

    def logits(self, nets: Nets, x: Sample, t: Time, batch: Batch) -> Tensor:
        """The discriminator on x, noised to t."""
        x_t = nets.fake.process.add_noise(x, batch.noise(), t)
        _, taps = nets.fake.features(x_t, t, batch.cond, list(nets.fake.network.taps))  # type: ignore[arg-type]
        return nets.head(*taps.values())

    def fake_loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """Denoising of the student's samples, and telling them from data."""
        _, batch = self.guided(nets, batch)
        with torch.no_grad():
            x = self.made(nets.student, batch)
        t = self.fake_density(nets.fake.process, batch.draws)
        x_t = nets.fake.process.add_noise(x, batch.noise(), t)
        error = Squared()(nets.fake(x_t, t, batch.cond), x)
        terms = {"fake": error * weight("output", nets.fake, t).to(error)}
        if self.gan_fake:
            t = self.fake_density(nets.fake.process, batch.draws)
            real, made = (self.logits(nets, images, t, batch) for images in (batch.data, x))
            terms["discriminator"] = self.gan_fake * (F.softplus(made) + F.softplus(-real))
        return Losses(terms)

    def loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """½ ‖x - sg[x - g]‖², whose gradient in x is g: the difference of the two scores."""
        teacher, batch = self.guided(nets, batch)
        x = self.made(nets.student, batch)
        with torch.no_grad():
            t = self.density(nets.teacher.process, batch.draws)
            x_t = nets.teacher.process.add_noise(x, batch.noise(), t)
            real = teacher(x_t, t, batch.cond)
            fake = nets.fake(x_t, t, batch.cond)
            scale = (x - real).abs().flatten(1).mean(1).clamp(min=1e-6)
            goal = x - (fake - real) / per_sample(scale, x)
        terms = {"matching": 0.5 * Squared()(x, goal)}
        if self.gan:
            t = self.fake_density(nets.fake.process, batch.draws)
            terms["adversarial"] = self.gan * F.softplus(-self.logits(nets, x, t, batch))
        return Losses(terms)

    def sampler(self, clock: Clock, net: str = "student") -> Sampler:
        return Renoise(self.steps, self.sample_times)

    def serves(self, steps: int) -> bool:
        return steps == self.steps

    def for_steps(self, steps: int) -> Method:
        return dataclasses.replace(self, steps=steps)
