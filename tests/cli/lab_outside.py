"""What a researcher may write outside the package: one of each kind, all of them small."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from fewstep.choice import Count, Natural, Positive, Share
from fewstep.data.dataset import held_images
from fewstep.data.source import Source
from fewstep.diffusion.densities import Density
from fewstep.diffusion.samplers import Renoise
from fewstep.diffusion.solvers import OneStepSolver
from fewstep.diffusion.times import Times
from fewstep.learning.losses import Distance
from fewstep.learning.method import Losses, Method
from fewstep.learning.roles import frozen, trained
from fewstep.learning.schedules import Schedule
from fewstep.models.network import ConditionedModule, Network, TimeInput
from fewstep.training.optimizers import OptimizerSpec


@dataclass(frozen=True)
class LabCubed(Distance):
    """Mean of |a - b|³."""

    def __call__(self, a, b):
        return (a - b).abs().pow(3).flatten(1).mean(1)


@dataclass(frozen=True)
class LabGrid(Times):
    """Even steps in ln(sigma / alpha), for processes where it is finite."""

    def __call__(self, process, n):
        ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
        level = torch.log(process.sigma(ends) / process.alpha(ends))
        even = torch.linspace(0, 1, n + 1, dtype=torch.float64)
        inner = torch.exp(level[0] + even[1:-1] * (level[1] - level[0]))
        last = ends[1:] if self.end == "t_min" else torch.full_like(ends[1:], process.t_data)
        return torch.cat([ends[:1], process.time_of(torch.atan(inner)), last])


@dataclass(frozen=True)
class LabStep(OneStepSolver):
    """Heun's step, half of it."""

    order: ClassVar[int] = 1
    calls: ClassVar[int] = 2

    def correction(self, step, history):
        return step.x0_seen_from(step.s), step.r_t / (4 * step.r_s)


@dataclass(frozen=True)
class LabDensity(Density):
    """Evenly in time."""

    def __call__(self, process, draws):
        return process.t_min + draws.uniform() * (process.t_max - process.t_min)


@dataclass(frozen=True)
class LabSchedule(Schedule):
    """One factor all the time."""

    share: Share = 0.5
    """The factor."""
    warmup: Natural = 0

    def after_warmup(self, progress):
        return self.share


@dataclass(frozen=True)
class LabOptimizer(OptimizerSpec):
    """Gradient descent with momentum."""

    lr: Positive = 0.01

    def build(self, parameters):
        return torch.optim.SGD(parameters, lr=self.lr, momentum=0.9, foreach=True)


@dataclass(frozen=True)
class LabNoise(Source):
    """Pictures without content."""

    count: Count = 64
    """How many."""

    def read(self, beside=None):
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (self.count, 1, 8, 8), generator=generator, dtype=torch.uint8)
        return held_images(
            images, torch.arange(self.count) % 10, 10, torch.arange(self.count), {"source": "none"}
        )


@dataclass(frozen=True)
class LabNet(Network):
    """One convolution, moved by the embedding."""

    channels: Count = 4
    """Of the hidden layer."""
    time_input: TimeInput = "log_sigma"
    extra: tuple[str, ...] = ()

    def build(self, space):
        return LabModule(self, space)


class LabModule(ConditionedModule):
    """conv, plus embedding, SiLU, conv."""

    def __init__(self, spec, space):
        super().__init__(spec, space, 8, spec.channels)
        self.first = nn.Conv2d(space.shape[0], spec.channels, 3, padding=1)
        self.last = nn.Conv2d(spec.channels, space.shape[0], 3, padding=1)
        self.taps = {"first": spec.channels}

    def forward(self, x, t, cond, s=None):
        moved = self.first(x) + self.embedding(t, cond, s)[:, :, None, None]
        return self.last(nn.functional.silu(moved))


@dataclass(frozen=True)
class LabMethod(Method):
    """The student learns the teacher's answer at a time of the density."""

    density: Density = field(default_factory=LabDensity)
    """Where."""
    distance: Distance = field(default_factory=LabCubed)
    """How far the answers are apart."""
    times: Times = field(default_factory=LabGrid)
    """Where the student is sampled."""
    solver: OneStepSolver = field(default_factory=LabStep)
    """The teacher's step before the answer."""

    @dataclass
    class Nets:
        """The pair."""

        student: nn.Module = trained(exported=True)
        teacher: nn.Module = frozen()

    def build_nets(self, model, clone):
        return self.Nets(clone("student"), model.denoiser)

    def loss(self, nets, batch, clock):
        process = nets.teacher.process
        t = self.density(process, batch.draws)
        s = (t * 0.5).clamp(min=process.t_min)
        x_t = process.add_noise(batch.data, batch.noise(), t)
        with torch.no_grad():
            x_s = self.solver(nets.teacher, process, x_t, t, s, batch.cond)
            goal = nets.teacher(x_s, s, batch.cond)
        return Losses({"answer": self.distance(nets.student(x_t, t, batch.cond), goal)})

    def sampler(self, clock, net="student"):
        return Renoise(steps=2, times=self.times)
