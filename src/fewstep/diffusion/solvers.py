"""Solvers: one step from t to s of the probability-flow ODE, written with `Process.step`.

Each second-order step is a first-order one with a corrected x0; r = sigma/alpha. So a solver works
for every process, and a teacher's step and a sampler's step are the same code.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fewstep.choice import Choice
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoise
from fewstep.diffusion.process import PURE_NOISE, Process
from fewstep.diffusion.types import Mask, Sample, Time, per_sample, where_rows

History = list[tuple[Time, Sample]]


def second_order(process: Process, t: Time, s: Time) -> Mask:
    """Which steps a second-order solver can correct: not one that ends at the data (r_s = 0), nor
    one that starts where alpha is 0.
    """
    return (process.sigma(s) > 0) & (process.sigma(t) / process.alpha(t) < PURE_NOISE)


class SolverStep:
    """What a solver knows of the step that it corrects: from (t, x_t) to s, with the x0 seen at
    t.
    """

    def __init__(
        self,
        denoise: Denoise,
        process: Process,
        x_t: Sample,
        x0: Sample,
        t: Time,
        s: Time,
        cond: Cond,
    ):
        self.denoise = denoise
        self.process = process
        self.cond = cond
        self.x_t = x_t
        self.x0 = x0
        self.t = t
        self.s = s
        # The quotient itself: `process.level`, the tangent of an angle, is rounded near pi/2.
        self.r_t = process.sigma(t) / process.alpha(t)
        self.r_s = process.sigma(s) / process.alpha(s)
        self.starts_with_data = self.r_t < PURE_NOISE

    def x0_seen_from(self, u: Time) -> Sample:
        """x0 at the point that a first-order step reaches at u."""
        return self.denoise(self.process.step(self.x_t, self.x0, self.t, u), u, self.cond)


class Solver(Choice, ABC):
    """One step t -> s. `order`: of the global error; `calls`: evaluations of a step that does not
    end at the data.
    """

    order: ClassVar[int]
    calls: ClassVar[int]

    @classmethod
    def spelled(cls, value: Any) -> Any:
        """DDIM by that name: its deterministic step is the first-order one."""
        options = super().spelled(value)
        if isinstance(options, Mapping) and options.get("kind") in ("ddim", "DDIM"):
            return {**options, "kind": "euler"}
        return options

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
        """x_s. history: the (t, x0) of the steps before, which is extended here.

        Rows that end at the data (r_s = 0), or start where alpha is 0, take the first-order step:
        one such step keeps the order of the whole.
        """
        x0 = denoise(x_t, t, cond)
        step = SolverStep(denoise, process, x_t, x0, t, s, cond)
        usable = second_order(process, t, s)
        # Whether any row is usable can be asked without waiting only of times on the CPU.
        if usable.device.type != "cpu" or bool(usable.any()):
            correction = self.correction(step, history or [])
            if correction is not None:
                other, share = correction
                corrected = x0 + per_sample(torch.where(usable, share, 0), x0) * (other - x0)
                x0 = where_rows(usable, corrected, x0)
        if history is not None:
            history.append((t, step.x0))
        return process.step(x_t, x0, t, s)

    @abstractmethod
    def correction(self, step: SolverStep, history: History) -> tuple[Sample, Time] | None:
        """(other x0, share): the step is taken with x0 + share (other - x0); None for a first-order
        step.
        """


class OneStepSolver(Solver, ABC):
    """A solver that remembers nothing, so that a single step of it is all that it is."""


@dataclass(frozen=True)
class Euler(OneStepSolver):
    """First order: DDIM (arXiv:2010.02502), Euler in sigma for EDM, Euler on the velocity for
    flows.
    """

    order: ClassVar[int] = 1
    calls: ClassVar[int] = 1

    def correction(self, step: SolverStep, history: History) -> tuple[Sample, Time] | None:
        return None


@dataclass(frozen=True)
class Heun(OneStepSolver):
    """Heun's step in r (arXiv:2206.00364, algorithm 1): x0 + r_t/(2 r_s) (x0' - x0), x0' seen from
    the Euler point.
    """

    order: ClassVar[int] = 2
    calls: ClassVar[int] = 2

    def correction(self, step: SolverStep, history: History) -> tuple[Sample, Time] | None:
        return step.x0_seen_from(step.s), step.r_t / (2 * step.r_s)


@dataclass(frozen=True)
class Midpoint(OneStepSolver):
    """The midpoint rule in r: x0 + r_t/r_m (x0_m - x0) with r_m = (r_t + r_s)/2."""

    order: ClassVar[int] = 2
    calls: ClassVar[int] = 2

    def correction(self, step: SolverStep, history: History) -> tuple[Sample, Time] | None:
        r_m = (torch.where(step.starts_with_data, step.r_t, step.r_s) + step.r_s) / 2
        return step.x0_seen_from(step.process.at_level(r_m)), step.r_t / r_m


@dataclass(frozen=True)
class Dpmpp2m(Solver):
    """DPM-Solver++ 2M, midpoint form (arXiv:2211.01095): x0 extrapolated in lambda =
    ln(alpha/sigma) from the last one.

    With h = lambda_s - lambda_t and h0 the step before: x0 + h/(2 h0) (x0 - x0_before). The first
    step is of first order, and the last only where it ends at the data; diffusers takes the last of
    less than 15 steps with first order also where it does not.
    """

    order: ClassVar[int] = 2
    calls: ClassVar[int] = 1

    def correction(self, step: SolverStep, history: History) -> tuple[Sample, Time] | None:
        if not history:
            return None
        before, x0_before = history[-1]
        r_before = step.process.sigma(before) / step.process.alpha(before)
        return x0_before, -torch.log(step.r_t / step.r_s) / (2 * torch.log(r_before / step.r_t))
