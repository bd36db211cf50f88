"""What consistency methods share: times of a grid, points of one trajectory, jumps, and two looks
at one answer.
"""

import contextlib
from typing import Literal

import torch

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoise
from fewstep.diffusion.densities import TOP, LogNormal, goes_to_noise
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.process import End, Process
from fewstep.diffusion.solvers import OneStepSolver
from fewstep.diffusion.times import Times
from fewstep.diffusion.types import (
    Grid,
    Sample,
    Time,
    per_sample,
    time_dtype,
    to_device,
    where_rows,
)
from fewstep.learning.batch import Batch
from fewstep.learning.dropout import SharedDropout, without_dropout
from fewstep.learning.losses import Distance

Masks = Literal["shared", "own", "none"]


def one_end(times: Times, sample_times: Times) -> End:
    """Where a student ends that is trained on one grid and sampled on the other. ValueError where
    they do not end alike.
    """
    if times.end != sample_times.end:
        raise ValueError(
            "method.times and method.sample_times must have one end: both t_min, or both t_data"
        )
    return times.end


def adjacent(
    grid: Grid, draws: Draws, process: Process, density: LogNormal | None = None
) -> tuple[Time, Time]:
    """(t, s) with t > s: the ends of one random interval of the decreasing grid per row.

    density None: all intervals alike. LogNormal: with the probability that it gives to the interval
    (arXiv:2310.14189); in a process that goes on to pure noise all of it from sigma/alpha = 80 up
    is given to the interval that begins there. A grid that names a time twice (a table has only so
    many) has no interval there.
    """
    grid = torch.unique_consecutive(grid)
    if density is None:
        index = draws.integers(len(grid) - 1)
    else:
        level = process.level(grid)
        if goes_to_noise(process):  # what lies above the last level is the interval of t_max
            level = torch.cat([level[:1], level[1:].clamp(max=TOP)])
        level = torch.log(level)
        below = torch.erf((level - density.mean) / (density.std * 2**0.5))
        share = (below[:-1] - below[1:]).clamp(min=0)
        edges = share.cumsum(0) / share.sum()
        edges = to_device(edges, draws.device, time_dtype(draws.device))
        index = torch.searchsorted(edges, draws.uniform()).clamp(max=len(grid) - 2)
    grid = to_device(grid, draws.device, time_dtype(draws.device))
    return grid[index], grid[index + 1]


def jump_and_goal(
    student: Denoise,
    target: Denoise,
    x_t: Sample,
    t: Time,
    x_s: Sample,
    s: Time,
    cond: Cond,
    masks: Masks = "shared",
) -> tuple[Sample, Sample]:
    """(student(x_t, t), target(x_s, s)); the goal carries no gradient.

    masks: the target's pass has the student's dropout masks ("shared"), masks of its own ("own") or
    none ("none").
    """
    shared = SharedDropout(x_t.device)
    with shared:
        jump = student(x_t, t, cond)
    around: dict[Masks, contextlib.AbstractContextManager[None]] = {
        "shared": shared,
        "own": contextlib.nullcontext(),
        "none": without_dropout(target),
    }
    with torch.no_grad(), around[masks]:
        return jump, target(x_s, s, cond)


def pair(
    solver: OneStepSolver | None, teacher: Denoise, process: Process, batch: Batch, t: Time, s: Time
) -> tuple[Sample, Sample]:
    """(x_t, x_s) of one trajectory: x_s is the teacher's step or, without a solver, of the same
    data and noise as x_t.

    The latter is the step with x0 in the place of the teacher's answer: right on average
    (consistency training).
    """
    if solver is None:
        return same_noise(process, batch, t, s)
    x_t = process.add_noise(batch.data, batch.noise(), t)
    with torch.no_grad():
        return x_t, solver(teacher, process, x_t, t, s, batch.cond)


def same_noise(process: Process, batch: Batch, t: Time, s: Time) -> tuple[Sample, Sample]:
    """(x_t, x_s) of the same data and the same noise."""
    x0, noise = batch.data, batch.noise()
    return process.add_noise(x0, noise, t), process.add_noise(x0, noise, s)


def jump_to(denoise: Denoise, process: Process, end: Time) -> Denoise:
    """The map x_t -> x_end: one `Process.step` with the answer of `denoise`, and x_t itself, bit by
    bit, at t = end.
    """

    def carried(x_t: Sample, t: Time, cond: Cond, s: Time | None = None) -> Sample:
        # Where t = end is the data, what the step gives is thrown away.
        start = t.clamp(min=process.t_min)
        x_end = process.step(x_t, denoise(x_t, start, cond, end), start, end)
        return where_rows(t == end, x_t, x_end)

    return carried


def compared(distance: Distance, process: Process, a: Sample, b: Sample, t: Time) -> Time:
    """The distance of two samples at t, divided by √(alpha² + sigma²): the same number for every
    process.
    """
    scale = per_sample(1 / torch.hypot(process.alpha(t), process.sigma(t)), a)
    return distance(scale * a, scale * b)


def at_or_below(bounds: Grid, t: Time) -> Time:
    """The largest of the decreasing bounds that is not above t: where the segment of t ends."""
    rising = to_device(bounds.flip(0), t.device, t.dtype)
    return rising[torch.searchsorted(rising, t, right=True) - 1]


def at_or_above(bounds: Grid, t: Time) -> Time:
    """The smallest of the decreasing bounds that is not below t."""
    rising = to_device(bounds.flip(0), t.device, t.dtype)
    return rising[torch.searchsorted(rising, t)]


def one_between(grid: Grid, low: Time, high: Time, draws: Draws) -> Time:
    """One of the grid's times from low to high per row, both included, all alike. Both must be
    times of the grid.
    """
    rising = torch.unique_consecutive(grid).flip(0)
    rising = to_device(rising, high.device, high.dtype)
    first = torch.searchsorted(rising, to_device(low, high.device, high.dtype).contiguous())
    last = torch.searchsorted(rising, high.contiguous())
    index = first + (draws.uniform() * (last - first + 1)).long()
    return rising[torch.minimum(index, last)]  # in float32 a uniform number may round to 1
