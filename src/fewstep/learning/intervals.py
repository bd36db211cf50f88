"""Neighbouring times of a grid, as consistency methods train on them."""

import torch

from fewstep.diffusion.draws import Draws
from fewstep.diffusion.process import Process
from fewstep.diffusion.times import LogNormal
from fewstep.diffusion.types import Grid, Time, time_dtype


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
