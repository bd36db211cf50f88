"""Denoising score matching: how teachers are trained (Karras et al. 2022, arXiv:2206.00364, eq. 2
and 8).
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Le

from fewstep.choice import Count, Share
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.densities import Density, Usual
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.samplers import Ode, Sampler
from fewstep.diffusion.solvers import Heun, Solver
from fewstep.diffusion.times import Auto, Times
from fewstep.learning.batch import Batch
from fewstep.learning.losses import Squared
from fewstep.learning.method import UNGUIDED, Clock, Clone, Losses, Method
from fewstep.learning.roles import trained

HIGHEST = 8.0  # scale of guidance that a trained model is told to be good for


@dataclass(frozen=True)
class Diffusion(Method):
    """E[ ‖D(x_t, t) - x0‖² / out(t)² ], x_t = alpha x0 + sigma noise: regression on the network's
    own output.

    1/out² is EDM's weight (sigma² + sigma_data²)/(sigma sigma_data)² for EDM networks, and the
    plain squared error of the predicted noise, v, flow or sample for those predictions: one line
    for every teacher.
    """

    fine_tunes: ClassVar[bool] = True

    density: Density = dataclasses.field(default_factory=Usual)
    """Of the training times; the default is what the process is used with."""
    label_dropout: Share = 0.1
    """Share of the rows whose condition is taken away, for guidance, 0 … 1."""
    solver_steps: Count = 18
    """Steps of the ODE sampler that the network is saved with."""
    solver: Solver = dataclasses.field(default_factory=Heun)
    """The solver that takes them."""
    times: Times = dataclasses.field(default_factory=Auto)
    """The grid that they are on."""
    default_guidance: Annotated[float, Ge(1), Le(HIGHEST)] = 1.0
    """The scale that it is sampled with where nobody asks for another; 1 is none."""

    def __post_init__(self) -> None:
        if self.default_guidance != 1 and not self.label_dropout:
            raise ValueError("default_guidance needs a model that can be guided: label_dropout > 0")

    @dataclass
    class Nets:
        """The network in training."""

        student: Denoiser = trained(exported=True)

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        return self.Nets(clone("student"))

    def towards(self, model: Any) -> Method:
        if "guidance" in model.denoiser.inputs:
            raise ValueError("the network reads its guidance, which diffusion does not train")
        return self

    def loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """One noise level and one noise per sample."""
        x0, noise = batch.data, batch.noise()
        t = self.density(nets.student.process, batch.draws)
        cond = batch.cond.dropped(self.label_dropout, batch.draws)
        x_t = nets.student.process.add_noise(x0, noise, t)
        error = Squared()(nets.student(x_t, t, cond), x0)
        weight = nets.student.coefficients(t).out ** -2
        return Losses({"denoising": error * weight.to(error)})

    def sampler(self, clock: Clock, net: str = "student") -> Sampler:
        return Ode(self.solver_steps, self.times, self.solver)

    def student_guidance(self, teacher: Guidance = UNGUIDED) -> Guidance:
        """Doubled where an unconditional side is trained; a model that goes on keeps its scales."""
        if not self.label_dropout:
            return Guidance()
        if teacher.kind == "doubled" and self.default_guidance == 1:
            return teacher
        return Guidance("doubled", 1.0, HIGHEST, self.default_guidance)
