"""Methods that ask their teacher by way of a solver, or learn from the data alone."""

from abc import ABC

from fewstep.diffusion.solvers import OneStepSolver
from fewstep.learning.guidance import GuidanceRange, GuidedBy
from fewstep.learning.method import Method


class OptionalTeacher(Method, ABC):
    """Without a solver no teacher is asked, so there is none to guide."""

    solver: OneStepSolver | None
    """The solver of the teacher's steps; null trains without a teacher."""

    def __post_init__(self) -> None:
        if self.solver is None and self.scales != GuidanceRange():
            raise ValueError("without a solver there is no teacher to guide: guidance must be 1")

    @property
    def guided_by(self) -> GuidedBy:
        return "nothing" if self.solver is None else "teacher"
