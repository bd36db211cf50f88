"""Multi-boundary consistency distillation (Starodubcev et al. 2024, arXiv:2406.14539)."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from fewstep.choice import Count, Share
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.guidance import Guidance, check_fading
from fewstep.diffusion.process import Process
from fewstep.diffusion.samplers import FlowMap, Sampler
from fewstep.diffusion.solvers import Euler, OneStepSolver
from fewstep.diffusion.times import Auto, Segments, Times
from fewstep.diffusion.types import Grid
from fewstep.learning.batch import Batch
from fewstep.learning.consistency import (
    adjacent,
    at_or_below,
    compared,
    jump_and_goal,
    jump_to,
    pair,
)
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.losses import Distance, Huber
from fewstep.learning.method import UNGUIDED, Clock, Clone, Losses
from fewstep.learning.optional_teacher import OptionalTeacher
from fewstep.learning.roles import frozen, trained
from fewstep.learning.simulation import Simulation
from fewstep.learning.weights import IntervalWeighting, interval_weight


@dataclass(frozen=True)
class MultiBoundary(OptionalTeacher, Simulation):
    """d( J(x_t; t -> e), sg J(x_s; s -> e) ): x_s is the teacher's step, J one DDIM jump with the
    student's answer, and e the largest boundary that is not above s; where s = e the goal is x_s
    itself.

    The student carries any point to the lower end of its segment, so `segments` deterministic steps
    sample it. At zero loss they equal the teacher's steps over all `bins` intervals, whatever their
    number; with one segment it is LCM's loss for a student of x0. Unlike the
    released code, the teacher's last step ends where the student's does (there: at index 0 and
    at the data), and samples are compared at unit scale, which is no change for a table.
    """

    segments: Count = 4
    """Segments of the trajectory: the steps of the student."""
    boundaries: tuple[float, ...] = ()
    """Chosen boundaries between the segments, decreasing times; they replace `segments`."""
    bins: Count = 50
    """Intervals of the grid."""
    times: Times = dataclasses.field(default_factory=Auto)
    """The grid whose intervals are trained on."""
    solver: OneStepSolver | None = dataclasses.field(default_factory=Euler)
    """The solver of the teacher's steps; null trains without a teacher."""
    guidance: GuidanceRange | None = None
    distance: Distance = dataclasses.field(default_factory=Huber)
    """The distance of the two jumps."""
    weighting: IntervalWeighting = "uniform"
    """Weight of an interval."""
    simulated: Share = 0.0
    fading: tuple[float, float] | None = None
    """Dynamic guidance that a student of guidance.embed=true is saved with: the whole scale at
    times up to the first, none from the second on, a line between."""
    keeps_noise: ClassVar[bool] = True

    @dataclass
    class Nets:
        """The student and the frozen teacher."""

        student: Denoiser = trained(exported=True)
        teacher: Denoiser = frozen()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver is None and self.simulated:
            raise ValueError("without a solver there are only the data: simulated must be 0")
        if self.fading is not None:
            check_fading(self.fading)

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        self.ends(model.denoiser.process)  # boundaries that cannot be fail here
        if self.fading is not None and not self.scales.embed:
            raise ValueError("fading needs a student that reads its scale: guidance.embed=true")
        inputs, own = self.scales.inputs(model), model.denoiser.parameterization
        return self.Nets(clone("student", inputs=inputs, parameterization=own), model.denoiser)

    def ends(self, process: Process, lifted: bool = False) -> Grid:
        """The boundaries from t_max to the end, decreasing."""
        return self.grid(lifted)(process, self.steps)

    @property
    def steps(self) -> int:
        """How many segments there are."""
        return len(self.boundaries) + 1 if self.boundaries else self.segments

    def grid(self, lifted: bool = False) -> Segments:
        """The boundaries as a sampler's grid."""
        return Segments(self.times, self.bins, between=self.boundaries, lifted=lifted)

    def loss(self, nets: Any, batch: Batch, clock: Clock) -> Losses:
        """One interval and one noise per sample."""
        process = nets.teacher.process
        grid = self.times(process, self.bins)
        t, s = adjacent(grid, batch.draws, process)
        end = at_or_below(self.ends(process), s)
        teacher, cond = self.scales(nets.teacher, batch.cond, batch.draws)
        batch = self.with_answers(batch, nets.student, process, cond, grid)
        x_t, x_s = pair(self.solver, teacher, process, batch, t, s)
        student = jump_to(nets.student, process, end)
        jump, goal = jump_and_goal(student, student, x_t, t, x_s, s, cond)
        distance = compared(self.distance, process, jump, goal, end)
        w = interval_weight(self.weighting, process, t, s, nets.student)
        return Losses({"consistency": distance * w.to(distance)})

    def sampler(self, clock: Clock, net: str = "student") -> Sampler:
        return FlowMap(self.steps, self.grid())

    def student_guidance(self, teacher: Guidance = UNGUIDED) -> Guidance:
        return super().student_guidance(teacher)._replace(fading=self.fading)

    def serves(self, steps: int) -> bool:
        return steps == self.steps

    def for_steps(self, steps: int) -> "MultiBoundary":
        return dataclasses.replace(self, segments=steps, boundaries=())
