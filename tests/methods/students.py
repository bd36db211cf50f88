"""Students for methods in continuous time: any function of (x, t, s), and gains that are trained."""

import math

import torch
from tests.oracles import Exact, Gaussian, batch_of
from torch import nn

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import Edm, SamplePrediction
from fewstep.diffusion.process import RectifiedFlow
from fewstep.learning.method import Clock


class Answer(nn.Module):
    """A network whose output is function(x, t, s), s = t where none is given."""

    inputs = ("s",)

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, t, cond, s=None):
        return self.function(x, t, t if s is None else s)


def answering(process, function):
    """A real `Denoiser` whose x0 is function(x_t, t, s)."""
    return Denoiser(Answer(function), process, SamplePrediction())


class Gain(nn.Module):
    """F = gain(angle_t, angle_s)·x by a small network in float64: enough for data N(0, std²)."""

    inputs = ("s",)

    def __init__(self, process, seed=0, width=32):
        super().__init__()
        self.process = process
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
            ).double()

    def forward(self, x, t, cond, s=None):
        angles = [self.process.angle(u) for u in (t, t if s is None else s)]
        features = torch.stack([f(a) for a in angles for f in (torch.sin, lambda a: torch.log(torch.tan(a)) / 4)], 1)
        return self.body(features) * x


def descend(parameters, loss, steps, lr):
    """Adam with half a cosine to 0 on loss(step)."""
    optimizer = torch.optim.Adam(list(parameters), lr=lr, betas=(0.9, 0.99))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()


def samples(n, seed=1, d=1):
    """N(0, 0.5²), float64."""
    return 0.5 * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_reaches_the_exact_map(method, process, tolerance):
    """Trains a gain for 400 steps; its jumps are those of the exact flow map, up to a share of the sample's size."""
    data = Gaussian(process, 0.0, 0.5)
    network, steps = Gain(process), 400
    student = Denoiser(network, process, Edm())
    parts = method.Nets(student, Exact(process, data))
    (update,) = method.updates(Clock(0, steps, 256))
    descend(
        network.parameters(),
        lambda k: sum(update.loss(parts, batch_of(samples(256, k), k), Clock(k, steps, 256)).terms.values()).mean(),
        steps,
        1e-2,
    )
    flow = RectifiedFlow()
    late = torch.tensor([0.3, 0.5, 0.5, 0.7, 0.7, 0.9, 0.9, 0.9], dtype=torch.float64)
    early = torch.tensor([0.05, 0.05, 0.3, 0.05, 0.5, 0.02, 0.3, 0.8], dtype=torch.float64)
    t, s = (process.time_of(flow.angle(u)) for u in (late, early))
    x = data.spread(t)[:, None]
    made = process.step(x, student(x, t, Cond(), s), t, s)
    exact = data.flow(x, t, s)
    first_order = process.step(x, data(x, t), t, s)
    size = data.spread(s)[:, None]
    assert ((first_order - exact) / size).abs().max() > 0.25
    assert ((made - exact) / size).abs().max() < tolerance
