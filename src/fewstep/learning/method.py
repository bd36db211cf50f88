"""The contract between methods and the trainer.

A method says which networks train on which loss, and when. From that the trainer derives
optimizers, freezing, precision, accumulation, checkpoints, averages and logs; neither knows the
other.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from fewstep.choice import Choice, kind_of
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.parameterization import Parameterization
from fewstep.diffusion.samplers import Sampler
from fewstep.learning.batch import Batch
from fewstep.learning.guidance import GuidanceRange, GuidedBy, learned
from fewstep.models.bundle import DiffusionModel
from fewstep.models.part import Part

UNGUIDED = Guidance()


class Clock(NamedTuple):
    """Where a run stands. step · batch is the number of images that the student has seen."""

    step: int
    steps: int
    batch: int
    phase: int = 0
    phase_step: int = 0
    phase_steps: int = 1

    @property
    def progress(self) -> float:
        """The share of the run that is done, 0 … 1."""
        return self.step / self.steps


class Losses(NamedTuple):
    """Per-sample tensors (batch,): `terms` are summed into the loss, `notes` are only logged."""

    terms: Mapping[str, Tensor]
    notes: Mapping[str, Tensor] = MappingProxyType({})


class Update(NamedTuple):
    """One optimizer step of the networks `trains` on a loss(nets, batch, clock); it takes its own
    next batch.
    """

    trains: tuple[str, ...]
    loss: Callable[[Any, Batch, Clock], Losses]


@runtime_checkable
class Clone(Protocol):
    """Makes a network from another: a full copy or a view on shared weights. Methods cannot tell
    which.
    """

    def __call__(
        self,
        name: str,
        of: Denoiser | None = None,
        inputs: Set[str] = frozenset(),
        parameterization: Parameterization | None = None,
        dropout: float | None = None,
    ) -> Denoiser:
        """`inputs` are added to the network's own; without `of`, the student's start is cloned.
        dropout: another.
        """
        ...


@runtime_checkable
class Data(Protocol):
    """What is asked of the data: any rows of any batch, by number."""

    fingerprint: str

    def __call__(self, number: int, rows: range, draws: Draws) -> Batch:
        """Rows of batch `number`, on the device of the draws."""
        ...

    def ids(self, number: int, rows: range) -> Tensor:
        """Which samples those are."""
        ...


class Method(Choice, ABC):
    """A training method; its fields are its hyperparameters and its options on the command line.

    holds: the field that is the method whose guidance this one has too. trains: the kind of model
    that it begins with and makes. fine_tunes: it trains for many steps, which a few-step model
    that it begins with would need again. without_data: the options with which its losses read no
    images or latents; "" where none do.
    """

    folder: ClassVar[str | None] = "fewstep.methods"
    holds: ClassVar[str] = ""
    trains: ClassVar[type[DiffusionModel] | type[Part]] = DiffusionModel
    fine_tunes: ClassVar[bool] = False
    without_data: ClassVar[str] = ""
    guidance: GuidanceRange | None = None
    """Guidance of what the student learns from, in g-form: a number (1: none), or a range drawn per
    sample; null: the teacher's own."""

    @property
    def guided_by(self) -> GuidedBy:
        """Whose answers are guided: the teacher's, the student's own, or nobody's, for methods that
        learn from the data alone.
        """
        return "teacher"

    @property
    def scales(self) -> GuidanceRange:
        """The guidance that is learned; none where nobody says."""
        return self.guidance or GuidanceRange()

    def towards(self, model: Any) -> "Method":
        """This method for this teacher, its guidance settled. ValueError for a teacher that it
        cannot distil.
        """
        if self.holds:
            inner = getattr(self, self.holds).towards(model)
            return dataclasses.replace(self, **{self.holds: inner})  # type: ignore[type-var]
        name = kind_of(type(self))
        found = learned(self.guidance, model, self.guided_by, name)
        if "guidance" in {field.name for field in dataclasses.fields(self)}:  # type: ignore[arg-type]
            return dataclasses.replace(self, guidance=found)  # type: ignore[type-var]
        if found != GuidanceRange():
            raise ValueError(f"the teacher is guided, for which {name} has no option")
        return self

    @property
    def needs(self) -> frozenset[str]:
        """What the losses read of a batch: "x0", the data, and columns of the condition without
        which they are not defined.
        """
        return frozenset({"x0"})

    @abstractmethod
    def build_nets(self, model: Any, clone: Clone) -> Any:
        """A dataclass of networks, each with its role (`learning.roles`).

        The model's own denoiser is the teacher: never written, clone what moves. The trainer casts,
        freezes, shards and moves these networks to the device in place.
        """

    @abstractmethod
    def loss(self, nets: Any, batch: Batch, clock: Clock) -> Losses:
        """The student's loss, row by row."""

    def updates(self, clock: Clock) -> Sequence[Update]:
        """The optimizer steps of this step, in order: one of the student on its loss.

        What a phase does otherwise is another update, with a loss of its own: `fewstep plan`
        measures each of them once.
        """
        return [Update(("student",), self.loss)]

    def after_step(self, nets: Any, clock: Clock) -> None:
        """Moves slow copies."""

    def phases(self, steps: int) -> Sequence[int]:
        """First steps of the phases; at each, learning rate, optimizer state and averages start
        anew.
        """
        return (0,)

    def group(self) -> int:
        """Rows that a loss must see together: passes and processes get whole groups, from row 0 of
        the global batch.
        """
        return 1

    @property
    def reads_length(self) -> bool:
        """Whether a step depends on how many the run has (`clock.steps`, `clock.progress`), as a
        curriculum that is spread over it does: such a run cannot be made longer later.
        """
        return getattr(self, self.holds).reads_length if self.holds else False

    def completed(self, made: Any, data: Data) -> Any:
        """The finished model with what is measured of it once, on the data, before it is saved."""
        return made

    def sampler(self, clock: Clock, net: str = "student") -> Sampler | None:
        """The sampler that the exported network is made for; None where it generates nothing."""
        return None

    def student_guidance(self, teacher: Guidance = UNGUIDED) -> Guidance:
        """What the student's guidance argument means, where the teacher's means that."""
        if self.holds:
            held: Method = getattr(self, self.holds)
            return held.student_guidance(teacher)
        if teacher.kind == "fixed" and self.guided_by == "teacher":
            return teacher
        return self.scales.meaning

    def serves(self, steps: int) -> bool:
        """Whether the finished student is made to sample in so many steps."""
        return True

    def for_steps(self, steps: int) -> "Method":
        """The same method for a student of so many steps, where one student serves one number."""
        return self
