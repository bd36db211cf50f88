"""Solvers: one step from t to s of the probability-flow ODE, written with `Process.step`.

Each second-order step is a first-order one with a corrected x0; r = sigma/alpha. So a solver works for every process,
and a teacher's step and a sampler's step are the same code. Rows that end at the data (sigma(s) = 0), or start where
alpha is 0 (r infinite), take the first-order step: one such step keeps the order of the whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from fewstep.choice import Choice
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoise
from fewstep.diffusion.process import Process
from fewstep.diffusion.types import Sample, Time, per_sample

History = list[tuple[Time, Sample]]


class Solver(Choice, ABC):
    """One step t -> s. `order`: of the global error; `calls`: evaluations of a step that does not end at the data."""

    order: ClassVar[int]
    calls: ClassVar[int]

    @abstractmethod
    def __call__(
        self,
        denoise: Denoise,
        process: Process,
        x_t: Sample,
        t: Time,
        s: Time,
        cond: Cond,
        history: History | None = None,
    ) -> Sample:
        """x_s. history: the (t, x0) of the steps before, which multistep solvers read and extend themselves."""


def _second_order(process: Process, t: Time, s: Time) -> tuple[Time, Time, bool]:
    """r_t, r_s and whether any row can take a second-order step (known without waiting only for times on the CPU)."""
    r_t, r_s = process.sigma(t) / process.alpha(t), process.sigma(s) / process.alpha(s)
    possible = True if r_s.device.type != "cpu" else bool(((r_s > 0) & torch.isfinite(r_t)).any())
    return r_t, r_s, possible


def _corrected(x0: Sample, other: Sample, share: Time, r_t: Time, r_s: Time) -> Sample:
    """X0 + share (other - x0), and plain x0 in rows of first order."""
    share = torch.where((r_s > 0) & torch.isfinite(r_t), share, torch.zeros_like(share))
    return x0 + per_sample(share, x0) * (other - x0)


@dataclass(frozen=True)
class Euler(Solver):
    """First order: DDIM (arXiv:2010.02502), Euler in sigma for EDM, Euler on the velocity for flows."""

    order: ClassVar[int] = 1
    calls: ClassVar[int] = 1

    def __call__(  # noqa: D102
        self,
        denoise: Denoise,
        process: Process,
        x_t: Sample,
        t: Time,
        s: Time,
        cond: Cond,
        history: History | None = None,
    ) -> Sample:
        return process.step(x_t, denoise(x_t, t, cond), t, s)


@dataclass(frozen=True)
class Heun(Solver):
    """Heun's step in r (arXiv:2206.00364, algorithm 1): x0 + r_t/(2 r_s) (x0' - x0), x0' seen from the Euler point."""

    order: ClassVar[int] = 2
    calls: ClassVar[int] = 2

    def __call__(  # noqa: D102
        self,
        denoise: Denoise,
        process: Process,
        x_t: Sample,
        t: Time,
        s: Time,
        cond: Cond,
        history: History | None = None,
    ) -> Sample:
        x0 = denoise(x_t, t, cond)
        x_s = process.step(x_t, x0, t, s)
        r_t, r_s, possible = _second_order(process, t, s)
        if not possible:
            return x_s
        return process.step(x_t, _corrected(x0, denoise(x_s, s, cond), r_t / (2 * r_s), r_t, r_s), t, s)


@dataclass(frozen=True)
class Midpoint(Solver):
    """The midpoint rule in r: x0 + r_t/r_m (x0_m - x0) with r_m = (r_t + r_s)/2."""

    order: ClassVar[int] = 2
    calls: ClassVar[int] = 2

    def __call__(  # noqa: D102
        self,
        denoise: Denoise,
        process: Process,
        x_t: Sample,
        t: Time,
        s: Time,
        cond: Cond,
        history: History | None = None,
    ) -> Sample:
        x0 = denoise(x_t, t, cond)
        r_t, r_s, possible = _second_order(process, t, s)
        if not possible:
            return process.step(x_t, x0, t, s)
        finite = torch.where(torch.isfinite(r_t), r_t, r_s)
        r_m = (finite + r_s) / 2
        m = process.time_of(torch.atan(r_m))
        x0_m = denoise(process.step(x_t, x0, t, m), m, cond)
        return process.step(x_t, _corrected(x0, x0_m, r_t / r_m, r_t, r_s), t, s)


@dataclass(frozen=True)
class Dpmpp2m(Solver):
    """DPM-Solver++ 2M, midpoint form (arXiv:2211.01095): x0 extrapolated in lambda = ln(alpha/sigma) from the last one.

    With h = lambda_s - lambda_t and h0 the step before: x0 + h/(2 h0) (x0 - x0_before). The first step is of first
    order.
    """

    order: ClassVar[int] = 2
    calls: ClassVar[int] = 1

    def __call__(  # noqa: D102
        self,
        denoise: Denoise,
        process: Process,
        x_t: Sample,
        t: Time,
        s: Time,
        cond: Cond,
        history: History | None = None,
    ) -> Sample:
        x0 = denoise(x_t, t, cond)
        best = x0
        if history:
            before, x0_before = history[-1]
            r_t, r_s, _ = _second_order(process, t, s)
            r_before = process.sigma(before) / process.alpha(before)
            share = torch.log(r_t / r_s) / (2 * torch.log(r_before / r_t))
            best = _corrected(x0, x0_before, -share, r_t, r_s)
        if history is not None:
            history.append((t, x0))
        return process.step(x_t, best, t, s)
