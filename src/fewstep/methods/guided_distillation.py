"""Guided distillation, first stage (Meng et al. 2022, arXiv:2210.03142)."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.densities import Density, Usual
from fewstep.diffusion.samplers import Ode, Sampler
from fewstep.learning.batch import Batch
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.losses import Distance, Squared
from fewstep.learning.method import Clock, Clone, Losses, Method
from fewstep.learning.roles import frozen, trained
from fewstep.learning.weights import Weighting, weight


@dataclass(frozen=True)
class GuidedDistillation(Method):
    """w(t) d( D(x_t, t), D_null + g (D_cond - D_null) ): one evaluation answers what the guided
    teacher answers with two.

    The same number of steps at half the cost. g is drawn per sample and read by the student, which
    can be asked for any of the range. At one scale (guidance=3; null is the teacher's own) the
    student takes the teacher's place wherever that scale is asked for, and is often a LoRA. Other
    methods take it as their teacher. x_t is noised data, and all times count.
    """

    guidance: GuidanceRange | None = dataclasses.field(
        default_factory=lambda: GuidanceRange(1.0, 5.0, embed=True)
    )
    density: Density = dataclasses.field(default_factory=Usual)
    """Of the training times; the default is what the process is used with."""
    distance: Distance = dataclasses.field(default_factory=Squared)
    """The distance of the two answers."""
    weighting: Weighting = "output"
    """Weight over time; output: of what the network itself predicts."""
    sample_with: Sampler | None = None
    """How the student is sampled; null: as its teacher."""

    @dataclass
    class Nets:
        """The student and the frozen teacher."""

        student: Denoiser = trained(exported=True)
        teacher: Denoiser = frozen()

    def towards(self, model: Any) -> Method:
        settled = super().towards(model)
        assert isinstance(settled, GuidedDistillation)
        if settled.scales.plain:
            raise ValueError(
                "guidance is 1, the teacher's own or what was asked for, so there is none to "
                "learn: say which by method.guidance=3, or a range"
            )
        if settled.sample_with is not None:
            return settled
        return dataclasses.replace(settled, sample_with=model.sampler)

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        return self.Nets(clone("student", inputs=self.scales.inputs(model)), model.denoiser)

    def loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """One noise level, one noise and one guidance scale per sample."""
        x0, noise = batch.data, batch.noise()
        t = self.density(nets.teacher.process, batch.draws)
        x_t = nets.teacher.process.add_noise(x0, noise, t)
        teacher, cond = self.scales(nets.teacher, batch.cond, batch.draws.fork("guidance"))
        with torch.no_grad():
            goal = teacher(x_t, t, batch.cond)
        error = self.distance(nets.student(x_t, t, cond), goal)
        w = weight(self.weighting, nets.student, t)
        return Losses({"guidance": error * w.to(error)})

    def sampler(self, clock: Clock, net: str = "student") -> Sampler:
        return self.sample_with or Ode()
