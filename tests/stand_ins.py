"""Networks, solvers and distances that take the place of real ones in tests."""

import torch
from torch import nn

from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import SamplePrediction
from fewstep.diffusion.solvers import OneStepSolver
from fewstep.diffusion.types import per_sample
from fewstep.learning.losses import Squared


class Output(nn.Module):
    """A network whose output is any function of (x, t)."""

    inputs = ()

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, t, cond, s=None):
        return self.function(x, t)


class Exact(Denoiser):
    """A denoiser that hands on what function(x_t, t) says, in whatever type."""

    def __init__(self, process, function):
        super().__init__(Output(function), process, SamplePrediction())

    def forward(self, x_t, t, cond=None, s=None, eager=False):
        return self.network.function(x_t, t)


def denoising(process, function):
    """A real `Denoiser` whose answer is function(x_t, t)."""
    return Denoiser(Output(function), process, SamplePrediction())


class Function(nn.Module):
    """A function of (x, t, cond, s) in the place of a network."""

    def __init__(self, function, inputs):
        super().__init__()
        self.function, self.inputs = function, inputs

    def forward(self, x_t, t, cond, s=None):
        return self.function(x_t, t, cond, s)


def net(process, function, inputs=()):
    """A real `Denoiser` whose answer is function(x_t, t, cond, s)."""
    return Denoiser(Function(function, inputs), process, SamplePrediction())


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


class Masked(nn.Module):
    """function(x, t, s) under dropout."""

    inputs = ("s",)

    def __init__(self, function):
        super().__init__()
        self.function, self.drop = function, nn.Dropout(0.5)

    def forward(self, x, t, cond, s=None):
        return self.drop(self.function(x, t, s))


class Dropping(nn.Module):
    """Dropout on ones: the masks themselves."""

    inputs = ()

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x, t, cond, s=None):
        return self.drop(torch.ones_like(x))


class Gains(nn.Module):
    """A student x0 = gain(t)·x with one trainable gain per time of a grid; 1 at the end of the
    grid.
    """

    def __init__(self, process, grid, gains=None):
        super().__init__()
        self.process, self.grid = process, grid
        start = torch.ones(len(grid) - 1, dtype=torch.float64) if gains is None else gains
        self.gains = nn.Parameter(start.clone())

    def forward(self, x_t, t, cond=None, s=None):
        index = (self.grid[None] - t[:, None]).abs().argmin(1)
        gains = torch.cat([self.gains, torch.ones(1, dtype=self.gains.dtype)])
        return per_sample(gains[index], x_t.double()) * x_t.double()


class GainTable(nn.Module):
    """A student with one gain per (time, landing): x0 is what carries x_t to gain·x_t; ends as in
    `Chain`.
    """

    inputs = ()

    def __init__(self, process, grid, ends=None, start=0.5):
        super().__init__()
        self.process, self.grid, self.ends = process, grid, ends
        self.gains = nn.Parameter(torch.full((len(grid), len(grid)), start, dtype=torch.float64))

    def forward(self, x_t, t, cond=None, s=None):
        end = s if self.ends is None else self.ends(t)
        i, j = ((self.grid[None] - u[:, None]).abs().argmin(1) for u in (t, end))
        end = torch.where(
            t == end, 0.5 * t, end
        )  # an answer that is thrown away must not bring NaN into the gradient
        return self.process.x0_between(x_t, per_sample(self.gains[i, j], x_t) * x_t, t, end)


class TimeGain(nn.Module):
    """f(x, t) = gain(t) x, with gain(t_min) = 1: a small network of ln t."""

    def __init__(self, process, start=None):
        super().__init__()
        self.process = process
        self.net = nn.Sequential(
            nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1)
        ).double()

    def gain(self, t):
        u = torch.log(t / self.process.t_min)[:, None]
        return torch.exp(-nn.functional.softplus(self.net(u / 5 - 1)) * (1 - torch.exp(-u)))[:, 0]

    def forward(self, x, t, cond=None, s=None):
        return self.gain(t)[:, None] * x


class JumpGain(nn.Module):
    """F = gain(angle_t, angle_s)·x by a small network in float64: enough for data N(0, std²).

    ln(sigma/alpha) stops at 4.5, behind the end of VE: at pure noise it would be infinite.
    """

    inputs = ("s",)

    def __init__(self, process, seed=0, width=32):
        super().__init__()
        self.process = process
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Linear(4, width),
                nn.SiLU(),
                nn.Linear(width, width),
                nn.SiLU(),
                nn.Linear(width, 1),
            ).double()

    def forward(self, x, t, cond, s=None):
        angles = [self.process.angle(u) for u in (t, t if s is None else s)]
        levels = [torch.log(torch.tan(a)).clamp(max=4.5) / 4 for a in angles]
        features = torch.stack(
            [f for a, level in zip(angles, levels) for f in (torch.sin(a), level)], 1
        )
        return self.body(features) * x


class ExactFlow(OneStepSolver):
    """The exact flow map as the teacher's step."""

    order, calls = 99, 0

    def __init__(self, data):
        self.data = data

    def __call__(self, denoise, process, x_t, t, s, cond, history=None):
        return self.data.flow(x_t, t, s)

    def correction(self, step, history):
        return None


class Kept:
    """A distance that keeps what it compared."""

    def __call__(self, jump, goal):
        self.jump, self.goal = jump, goal
        return Squared()(jump, goal)


class Seen:
    """A function in the place of a denoiser that remembers what it was asked."""

    def __init__(self, function):
        self.function, self.asked = function, []

    def __call__(self, x, t):
        self.asked.append((x.detach().clone(), t.clone()))
        return self.function(x, t)
