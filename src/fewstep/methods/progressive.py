"""Progressive distillation (Salimans & Ho 2022, arXiv:2202.00512, algorithm 2)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fewstep.choice import Count
from fewstep.diffusion.denoiser import Denoise, Denoiser
from fewstep.diffusion.guidance import doubled
from fewstep.diffusion.samplers import Ode, Sampler
from fewstep.diffusion.solvers import Euler, OneStepSolver
from fewstep.diffusion.times import Auto, Times
from fewstep.diffusion.types import time_dtype, to_device
from fewstep.learning.averaging import ema_update
from fewstep.learning.batch import Batch
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.losses import Distance, Squared
from fewstep.learning.method import Clock, Clone, Losses, Method
from fewstep.learning.roles import moved, trained
from fewstep.learning.weights import Weighting, weight


@dataclass(frozen=True)
class Progressive(Method):
    """w(t) d( f(x_t, t), x~ ): x~ is the x0 with which ONE step t -> s lands where `factor` steps
    of the teacher land.

    In rounds: the teacher has `start` steps, the student a `factor` fewer, and at the round's end
    the student becomes the teacher, until it has `end` steps. Rounds to 2 steps and to 1 last twice
    as long, as published. The last step's x~ follows the same formula (the official code takes the
    teacher's x0 at the mid point: the same where the grid ends at the data). The grid must nest:
    every `factor`-th time of the finer one is a time of the coarser.
    """

    start: Count = 32
    """Steps of the first teacher."""
    end: Count = 4
    """Steps of the last student."""
    factor: Count = 2
    """What each round divides the steps by."""
    times: Times = dataclasses.field(default_factory=lambda: Auto(end="t_min"))
    """The grid; every factor-th time must be one of the coarser grid."""
    solver: OneStepSolver = dataclasses.field(default_factory=Euler)
    """The solver of the teacher's steps."""
    distance: Distance = dataclasses.field(default_factory=Squared)
    """The distance of the student from its goal."""
    guidance: GuidanceRange | None = None
    """Guidance of the teacher, in g-form: a number (1: none), or a range drawn per sample; null:
    the teacher's own. The first round learns it, the others keep it."""
    weighting: Weighting = "truncated_snr"
    """Weight over time."""

    def __post_init__(self) -> None:
        if (
            self.factor < 2
            or self.start <= self.end
            or self.end * self.factor ** len(self.rounds()) != self.start
        ):
            raise ValueError(
                f"start={self.start} must be end={self.end} times a power of factor={self.factor}"
            )

    @dataclass
    class Nets:
        """The student, and the teacher that it becomes.

        told: the first teacher reads its guidance; another one is guided in two evaluations.
        """

        student: Denoiser = trained(exported=True)
        teacher: Denoiser = moved()
        told: bool = False

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        process = model.denoiser.process
        for n in self.rounds():
            if not torch.allclose(
                self.times(process, n * self.factor)[:: self.factor], self.times(process, n)
            ):
                raise ValueError(
                    f"times of {n * self.factor} steps do not hold those of {n}: choose a grid "
                    f"that nests"
                )
        # Another start keeps its weights, but it must predict and read as the teacher that it
        # becomes.
        inputs = set(model.denoiser.inputs) - {"label"} | self.scales.inputs(model)
        student = clone("student", inputs=inputs, parameterization=model.denoiser.parameterization)
        teacher = clone(
            "teacher", of=model.denoiser, inputs=set(student.inputs) - {"label"}, dropout=0.0
        )
        if [p.shape for p in student.parameters()] != [p.shape for p in teacher.parameters()]:
            raise ValueError(
                "the student becomes the teacher: its start must have the teacher's network"
            )
        return self.Nets(student, teacher, "guidance" in model.denoiser.inputs)

    def rounds(self) -> list[int]:
        """The student's steps, round by round."""
        steps, found = self.start, []
        while self.factor > 1 and steps > self.end:
            steps //= self.factor
            found.append(steps)
        return found

    def phases(self, steps: int) -> Sequence[int]:
        lengths = [2 if n <= 2 else 1 for n in self.rounds()]
        if steps < sum(lengths):
            raise ValueError(f"{steps} training steps are too few for {len(lengths)} rounds")
        return [steps * sum(lengths[:i]) // sum(lengths) for i in range(len(lengths))]

    def loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """One step of the student's grid and one noise per sample."""
        process, n = nets.student.process, self.rounds()[clock.phase]
        grid, device = self.times(process, n * self.factor), batch.draws.device
        grid = to_device(grid, device, time_dtype(device))
        first = batch.draws.integers(n) * self.factor
        t, *later = (grid[first + k] for k in range(self.factor + 1))
        x_t = process.add_noise(batch.data, batch.noise(), t)
        scale = self.scales.scale(batch.draws.fork("guidance"))
        cond, teacher = self.scales.told(batch.cond, scale), nets.teacher
        guides = clock.phase == 0 and not nets.told and not self.scales.plain
        follows: Denoise = doubled(teacher, scale) if guides else teacher
        with torch.no_grad():
            # In float64: over a short step the division would blow up the rounding of x_t.
            x, now = x_t.to(time_dtype(x_t.device)), t
            for s in later:
                x, now = self.solver(follows, process, x, now, s, cond), s
            goal = process.x0_between(x_t.to(x.dtype), x, t, later[-1]).to(x_t.dtype)
        distance = self.distance(nets.student(x_t, t, cond), goal)
        w = weight(self.weighting, nets.student, t)
        return Losses({"progressive": distance * w.to(distance)}, {"distance": distance})

    def after_step(self, nets: Nets, clock: Clock) -> None:
        if clock.phase_step == clock.phase_steps - 1:
            ema_update(nets.teacher, nets.student, 0.0)

    def sampler(self, clock: Clock, net: str = "student") -> Sampler:
        return Ode(self.rounds()[clock.phase], self.times, Euler())

    def serves(self, steps: int) -> bool:
        return steps == self.end

    def for_steps(self, steps: int) -> Method:
        return dataclasses.replace(self, end=steps)
