"""What the tests of this folder share. New classes are found by their base, so they are tested
without being named.
"""

import pytest
import torch
from torch import nn

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.densities import Density
from fewstep.diffusion.parameterization import Epsilon, Parameterization, Score
from fewstep.diffusion.process import Process, VarianceExploding
from fewstep.diffusion.samplers import Sampler
from fewstep.diffusion.solvers import Solver
from fewstep.diffusion.times import Times

PROCESSES = {kind: cls() for kind, cls in Process.kinds().items()}
PARAMETERIZATIONS = {kind: cls() for kind, cls in Parameterization.kinds().items()}
SOLVERS = {kind: cls() for kind, cls in Solver.kinds().items()}
SAMPLERS = {kind: cls() for kind, cls in Sampler.kinds().items()}
TIMES = {kind: cls() for kind, cls in Times.kinds().items()}
DENSITIES = {kind: cls() for kind, cls in Density.kinds().items()}
PAIRS = {
    f"{a}-from-{b}": (PROCESSES[a], PROCESSES[b]) for a in PROCESSES for b in PROCESSES if a != b
}
ANGLES = torch.linspace(0.05, 1.45, 9, dtype=torch.float64)  # inside every process


def every(name, choices):
    return pytest.mark.parametrize(name, choices.values(), ids=choices.keys())


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def rows(value, n):
    """One number as the time of n samples."""
    return torch.full((n,), float(value), dtype=torch.float64)


def inner_times(process):
    """Times inside the range; for a table of 1000 all lie between two indices, where its rates are
    smooth.
    """
    shares = f64(0.0137, 0.1177, 0.3331, 0.5213, 0.7777, 0.9393)
    return process.t_min + (process.t_max - process.t_min) * shares


def inside(process):
    """Nine times of the process at the same angles as in any other."""
    return process.time_of(ANGLES)


def narrowed(process):
    """The process without the end where alpha is 0: sigma/alpha at most 80."""
    return process.within(VarianceExploding())


def known(process, prediction):
    """The process as far as the prediction is defined: epsilon and the score say nothing where
    alpha is 0.
    """
    return narrowed(process) if isinstance(prediction.prediction, Epsilon | Score) else process


def close(a, b, rtol=1e-12, atol=0.0):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol, check_dtype=False)


class Net(nn.Module):
    """A smooth function of x, of the time and of the target time, in any dtype; it remembers what
    it was given.
    """

    inputs = ("s",)

    def forward(self, x, t, cond, s=None):
        self.t, self.s, self.dtype = t, s, x.dtype
        f = torch.sin(2 * x) + torch.cos(t).to(x)[:, None]
        return f if s is None else f + torch.sin(s).to(x)[:, None]


class Watched:
    """A denoiser that counts its calls and remembers their times."""

    def __init__(self, denoise):
        self.denoise, self.times = denoise, []

    def __call__(self, x_t, t, cond, s=None):
        self.times.append(float(t[0]))
        return self.denoise(x_t, t, cond, s)

    @property
    def calls(self):
        return len(self.times)


def constant(x0):
    """A denoiser that always answers x0: every solver must end there."""
    return lambda x_t, t, cond, s=None: x0.to(x_t).expand_as(x_t)


def trajectory(solver, denoise, process, x, grid):
    """x at every time of the grid."""
    points, history = [x], []
    for t, s in zip(grid, grid[1:]):
        x = solver(denoise, process, x, t.expand(len(x)), s.expand(len(x)), Cond(), history)
        points.append(x)
    return points
