"""Students for methods in continuous time: any function of (x, t, s), and gains that are trained."""

import math

import torch
from torch import nn

from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import SamplePrediction


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
