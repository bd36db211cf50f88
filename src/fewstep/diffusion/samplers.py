"""Samplers: the whole way from unit noise to x0. A student saves the one that it was made for."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

from fewstep.choice import Choice, Count, NonNegative, Share, kind_of
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoise
from fewstep.diffusion.draws import Noise
from fewstep.diffusion.process import PURE_NOISE, Process
from fewstep.diffusion.solvers import Heun, History, Solver, second_order
from fewstep.diffusion.times import Auto, Explicit, Times
from fewstep.diffusion.types import Grid, Sample, Time, per_sample, where_rows

MOST_STEPS = 100_000  # their times are in memory together
S = TypeVar("S", bound="Sampler")


class Sampler(Choice, ABC):
    """Noise -> x0 in `steps` steps along `times`. Times stay on the CPU: no step waits for the
    device.
    """

    steps: int
    """Steps from noise to sample."""
    times: Times
    """The grid along which it goes."""

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Network evaluations, at most; twice as many where guidance doubles the batch."""

    def cost(self, process: Process) -> int:
        """Network evaluations in this process, exactly."""
        return self.evaluations

    @abstractmethod
    def walk(
        self, denoise: Denoise, process: Process, noise: Sample, cond: Cond, draws: Noise
    ) -> Iterator[tuple[Time, Sample]]:
        """Each step's end: its time (batch,) and x there. noise: unit normal; it is scaled to the
        process's prior inside.
        """

    def __call__(
        self, denoise: Denoise, process: Process, noise: Sample, cond: Cond, draws: Noise
    ) -> Sample:
        """x0: where the walk ends."""
        [(_, x0)] = deque(self.walk(denoise, process, noise, cond, draws), maxlen=1)
        return x0

    def with_steps(self: S, n: int) -> S:
        """The same sampler with n >= 1 steps."""
        return dataclasses.replace(self, steps=n)  # type: ignore[type-var]

    def grid(self, process: Process) -> Grid:
        """Its times. ValueError where they do not fall: a table has only so many."""
        if self.steps > MOST_STEPS:
            raise ValueError(f"{self.steps:,} steps are too many: at most {MOST_STEPS:,}")
        grid = self._grid(process)
        fall = grid.diff() < 0
        if not fall.all():
            t = grid[1:][~fall][0].item()
            raise ValueError(
                f"{self.steps} steps are too many for {kind_of(type(self.times))} times in this "
                f"{kind_of(type(process))}: they come to t={t:g} twice; take fewer"
            )
        return grid

    def _grid(self, process: Process) -> Grid:
        return self.times(process, self.steps)

    def _rows(self, process: Process, batch: int) -> list[Time]:
        """The grid as one (batch,) time per point."""
        return [t.expand(batch) for t in self.grid(process)]


@dataclass(frozen=True)
class Ode(Sampler):
    """A solver along a grid, with EDM's churn (arXiv:2206.00364, algorithm 2).

    churn is S_churn: each step with sigma/alpha in [churn_min, churn_max] first raises the noise
    level by the factor 1 + min(churn/steps, √2 - 1), adding noise of std churn_noise.
    """

    steps: Count = 18
    times: Times = dataclasses.field(default_factory=Auto)
    solver: Solver = dataclasses.field(default_factory=Heun)
    """The solver that takes each step."""
    churn: NonNegative = 0.0
    """S_churn of EDM: how much noise is added before each step; 0: none."""
    churn_min: NonNegative = 0.0
    """The smallest sigma/alpha at which noise is added."""
    churn_max: NonNegative | None = None
    """The largest sigma/alpha at which noise is added; null: no limit."""
    churn_noise: NonNegative = 1.0
    """Standard deviation of the noise that is added."""

    @property
    def evaluations(self) -> int:
        """calls per step, and 1 in the step that ends at the data."""
        last = self.solver.calls - 1 if self.times.end == "t_data" else 0
        return self.solver.calls * self.steps - last

    def cost(self, process: Process) -> int:
        """Of the steps from alpha = 0 and to the data, which are of first order, 1 each."""
        grid = self.grid(process)
        whole = int(second_order(process, grid[:-1], grid[1:]).sum())
        return self.steps + (self.solver.calls - 1) * whole

    def _grid(self, process: Process) -> Grid:
        # Of first order a solver is along any grid, and a student keeps the one that it learned.
        along = self.times if self.solver.order == 1 else self.times.for_solver
        return along(process, self.steps)

    def walk(
        self, denoise: Denoise, process: Process, noise: Sample, cond: Cond, draws: Noise
    ) -> Iterator[tuple[Time, Sample]]:
        x = process.prior(noise)
        rows = self._rows(process, len(x))
        history: History = []
        for t, s in zip(rows, rows[1:]):
            if self.churn:
                x, t = self._stirred(process, x, t, draws)
            x = self.solver(denoise, process, x, t, s, cond, history)
            yield s, x

    def _stirred(self, process: Process, x: Sample, t: Time, draws: Noise) -> tuple[Sample, Time]:
        r = process.sigma(t) / process.alpha(t)
        gamma = min(self.churn / self.steps, math.sqrt(2) - 1)
        highest = math.inf if self.churn_max is None else self.churn_max
        inside = (r >= self.churn_min) & (r <= highest) & (r < PURE_NOISE)
        up = torch.where(inside, process.at_level(r * (1 + gamma)), t)
        noise = self.churn_noise * draws.normal(*x.shape[1:]).to(x)
        stirred = renoised(process, x, noise, t, up)
        return where_rows(inside, stirred, x), up


def renoised(process: Process, x_s: Sample, noise: Sample, s: Time, t: Time) -> Sample:
    """x_t from x_s with s < t, such that the marginals are kept: (alpha_t/alpha_s) x_s and the
    missing noise.
    """
    keep = process.alpha(t) / process.alpha(s)
    missing = torch.sqrt((process.sigma(t) ** 2 - (keep * process.sigma(s)) ** 2).clamp(min=0))
    return per_sample(keep, x_s) * x_s + per_sample(missing, x_s) * noise


@dataclass(frozen=True)
class Renoise(Sampler):
    """Multistep consistency sampling (arXiv:2303.01469, algorithm 1): jump to the end, add noise,
    jump again.

    The last time of the grid says where the student's jumps end: t_min for the consistency boundary
    (noise added is √(t² - t_min²)), t_data for a student that predicts clean data (noise added is
    t).
    """

    steps: Count = 1
    times: Times = dataclasses.field(default_factory=Explicit)

    @property
    def evaluations(self) -> int:
        return self.steps

    def walk(
        self, denoise: Denoise, process: Process, noise: Sample, cond: Cond, draws: Noise
    ) -> Iterator[tuple[Time, Sample]]:
        *rows, end = self._rows(process, len(noise))
        x = denoise(process.prior(noise), rows[0], cond)
        yield end, x
        for t in rows[1:]:
            x = denoise(renoised(process, x, draws.normal(*x.shape[1:]).to(x), end, t), t, cond)
            yield end, x


@dataclass(frozen=True)
class FlowMap(Sampler):
    """Jumps of a student that carries x_t to any s: x0 = f(x_t, t, s), then `Process.step`.

    gamma > 0 lands deeper and adds the missing noise: 0 is deterministic, 1 is multistep
    consistency sampling. shortens "level": lands at sigma/alpha times √(1 - gamma²)
    (arXiv:2310.02279); "time": at the time itself times 1 - gamma, whole for a table
    (arXiv:2402.19159, gamma = 0.3). No landing is below the grid's end.
    """

    steps: Count = 1
    times: Times = dataclasses.field(default_factory=Auto)
    gamma: Share = 0.0
    """How much of each jump is replaced by fresh noise, 0 (deterministic) … 1."""
    shortens: Literal["level", "time"] = "level"
    """What gamma shortens: the noise level sigma/alpha, or the time itself."""

    @property
    def evaluations(self) -> int:
        return self.steps

    def walk(
        self, denoise: Denoise, process: Process, noise: Sample, cond: Cond, draws: Noise
    ) -> Iterator[tuple[Time, Sample]]:
        x = process.prior(noise)
        rows = self._rows(process, len(x))
        for i, (t, s) in enumerate(zip(rows, rows[1:])):
            land = s
            if self.gamma and i < self.steps - 1:
                land = torch.maximum(self.landing(process, s), rows[-1])
            x = process.step(x, denoise(x, t, cond, land), t, land)
            if land is not s:
                x = renoised(process, x, draws.normal(*x.shape[1:]).to(x), land, s)
            yield s, x

    def landing(self, process: Process, s: Time) -> Time:
        """Where a jump that is to be at s, once noise is added, ends."""
        if self.shortens == "level":
            return process.at_level(process.level(s) * math.sqrt(1 - self.gamma**2))
        shorter = s * (1 - self.gamma)
        return shorter.floor() if process.discrete else shorter

    def encoded(self, denoise: Denoise, process: Process, x0: Sample, cond: Cond) -> Sample:
        """The way back, from x0 up the grid, with a network trained for that direction: the unit
        noise, nearly, from which the student makes x0. x0 is taken for x at the grid's last time;
        ValueError where that has no noise.
        """
        rows = self._rows(process, len(x0))[::-1]
        if not process.sigma(rows[0]).all():
            raise ValueError(
                "encoding starts at the grid's last time, where there must be some noise: end it "
                "at t_min"
            )
        x = x0
        for t, s in zip(rows, rows[1:]):
            x = process.step(x, denoise(x, t, cond, s), t, s)
        return x / process.prior(torch.ones(1, dtype=torch.float64)).item()
