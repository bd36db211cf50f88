"""Methods whose student can learn at what it makes itself of noise."""

import dataclasses
from abc import ABC
from typing import ClassVar

import torch

from fewstep.choice import Share
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoise
from fewstep.diffusion.process import Process
from fewstep.diffusion.types import Grid, per_sample, time_dtype, to_device, where_rows
from fewstep.learning.batch import Batch, Continued
from fewstep.learning.dropout import without_dropout
from fewstep.learning.method import Method


class Simulation(Method, ABC):
    """A few-step sampler asks the student, behind its first step, for what the student itself made:
    blurred, and guided, where noised data are neither. Here a share of the rows is such an answer.

    The loss is 0 for the same student as without, for it is so at every x_t.
    """

    without_data: ClassVar[str] = "method.simulated=1"
    keeps_noise: ClassVar[bool] = False
    """Whether the sampler goes on with the noise that it began with. Then the loss is shown the
    answers with what is left of theirs, else with new noise."""
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
        own = draws.uniform() < self.simulated
        if self.simulated < 1:
            answers = where_rows(own, x0, batch.data)
        else:
            answers, own = x0, torch.ones_like(own)
        if not self.keeps_noise:
            return dataclasses.replace(batch, x0=answers)
        # What `Process.step` carries on of x_t, at unit scale.
        kept = (x_t - per_sample(process.alpha(start), x_t) * x0) / per_sample(
            process.sigma(start), x_t
        )
        return Continued(batch.cond, batch.draws, batch.shape, answers, own, kept)
