"""What consistency methods share: neighbouring times of a grid, and two looks at one trajectory."""

import torch

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoise
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.process import Process
from fewstep.diffusion.times import LogNormal
from fewstep.diffusion.types import Grid, Sample, Time, time_dtype
from fewstep.learning.dropout import SharedDropout


def adjacent(grid: Grid, draws: Draws, process: Process, density: LogNormal | None = None) -> tuple[Time, Time]:
    """(t, s) with t > s: the ends of one random interval of the decreasing grid per row.

    density None: all intervals alike. LogNormal: with the probability that it gives to the interval (arXiv:2310.14189).
    """
    if density is None:
        index = draws.integers(len(grid) - 1)
    else:
        level = torch.log(torch.tan(process.angle(grid)))
        below = torch.erf((level - density.mean) / (density.std * 2**0.5))
        share = (below[:-1] - below[1:]).clamp(min=0)
        edges = (share.cumsum(0) / share.sum()).to(draws.device, time_dtype(draws.device))
        index = torch.searchsorted(edges, draws.uniform()).clamp(max=len(grid) - 2)
    grid = grid.to(draws.device, time_dtype(draws.device))
    return grid[index], grid[index + 1]


def jump_and_goal(
    student: Denoise, target: Denoise, x_t: Sample, t: Time, x_s: Sample, s: Time, cond: Cond
) -> tuple[Sample, Sample]:
    """(student(x_t, t), target(x_s, s)) under the same dropout masks; the goal carries no gradient."""
    masks = SharedDropout(x_t.device)
    with masks:
        jump = student(x_t, t, cond)
    with torch.no_grad(), masks:
        return jump, target(x_s, s, cond)


def gap(process: Process, t: Time, s: Time) -> Time:
    """The interval's length in sigma/alpha, the unit in which consistency losses are weighted."""
    return torch.tan(process.angle(t)) - torch.tan(process.angle(s))
