"""Methods whose student can learn at what it makes itself of noise."""

import dataclasses
from abc import ABC
from typing import ClassVar

import torch

from fewstep.choice import Share
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoise
from fewstep.diffusion.process import Process
from fewstep.diffusion.types import Grid, time_dtype, to_device, where_rows
from fewstep.learning.batch import Batch
from fewstep.learning.dropout import without_dropout
from fewstep.learning.method import Method


class Simulation(Method, ABC):
    """A few-step sampler asks the student, behind its first step, for what the student itself made:
    blurred, and guided, where noised data are neither. Here a share of the rows is such an answer.

    The loss is 0 for the same student as without, for it is so at every x_t.
    """

    without_data: ClassVar[str] = "method.simulated=1"
    simulated: Share
    """Share of the rows whose clean sample is the student's own answer to pure noise (backward
    simulation, arXiv:2405.14867), 0 … 1; with 1 no data are read."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset() if self.simulated == 1 else super().needs

    def with_answers(
        self, batch: Batch, student: Denoise, process: Process, cond: Cond, grid: Grid
    ) -> Batch:
        """The batch in which the share has the answers at the grid's first time, for its last;
        `cond` is what the student reads.
        """
        if self.simulated == 0:
            return batch
        draws = batch.draws.fork("simulated")
        x_t = process.prior(draws.normal(*batch.shape))
        grid = to_device(grid, x_t.device, time_dtype(x_t.device))
        start, end = (t.expand(len(x_t)) for t in (grid[0], grid[-1]))
        with torch.no_grad(), without_dropout(student):
            x0 = student(x_t, start, cond, end)
        if self.simulated < 1:
            x0 = where_rows(draws.uniform() < self.simulated, x0, batch.data)
        return dataclasses.replace(batch, x0=x0)
