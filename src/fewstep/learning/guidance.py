"""Guidance that a student learns from its teacher, so that one evaluation gives the guided
sample.
"""

from dataclasses import dataclass
from typing import Any, Literal

from fewstep.choice import Choice, NonNegative
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoise, Denoiser
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.guidance import Guidance, guided
from fewstep.diffusion.parameterization import Boundary
from fewstep.diffusion.types import Time
from fewstep.yaml import settled

GuidedBy = Literal["teacher", "student", "nothing"]


@dataclass(frozen=True)
class GuidanceRange(Choice):
    """The guidance of what the student learns from, in g-form (1: none; the w of some papers is
    g - 1), drawn from low … high per sample. A number alone is that one scale.
    """

    low: NonNegative = 1.0
    "The smallest scale, in g-form: 1 is no guidance."
    high: NonNegative = 1.0
    "The largest scale; equal to `low` for one scale."
    embed: bool = False
    """The student reads the scale, through a zero-initialised embedding, and can be asked for any
    of the range; otherwise it never sees it, and learns the average over a range."""

    @classmethod
    def spelled(cls, value: Any) -> Any:
        number = settled(value)
        if isinstance(number, int | float) and not isinstance(number, bool):
            return {"low": number, "high": number}
        return super().spelled(value)

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"guidance low={self.low:g} is above high={self.high:g}")

    @property
    def plain(self) -> bool:
        """Whether nothing is guided."""
        return self.low == self.high == 1

    def inputs(self, model: Any) -> frozenset[str]:
        """What the student must read beside the teacher's own inputs. ValueError where the teacher
        cannot be guided.
        """
        told = "guidance" in model.denoiser.inputs
        if told and not self.embed:
            raise ValueError(
                "the teacher reads its guidance, so its student does too: set guidance.embed=true"
            )
        if not (told or model.conditioner.null or self.plain):
            raise ValueError(
                'guidance needs a teacher that knows "no label"; without it guidance must be 1'
            )
        return frozenset({"guidance"} if self.embed else ())

    def scale(self, draws: Draws) -> Time:
        """One scale per row; advances the draws for one scale too."""
        return self.low + (self.high - self.low) * draws.uniform()

    def __call__(self, teacher: Denoise, cond: Cond, draws: Draws) -> tuple[Denoise, Cond]:
        """(the teacher under scales of these draws, the condition that the student is given)."""
        scale = self.scale(draws)
        return self.guided(teacher, scale), self.told(cond, scale)

    def guided(self, teacher: Denoise, scale: Time) -> Denoise:
        """The teacher under these scales."""
        if self.plain and not self.embed:
            return teacher
        assert isinstance(teacher, Denoiser)
        untouched = self.plain and "guidance" not in teacher.inputs
        return teacher if untouched else guided(teacher, scale)

    def told(self, cond: Cond, scale: Time) -> Cond:
        """The condition with the scale, where the student reads it."""
        return cond.with_values(guidance=scale) if self.embed else cond

    @property
    def meaning(self) -> Guidance:
        """What the student's guidance argument means; its default is the middle of the range."""
        if self.plain and not self.embed:
            return Guidance()
        return Guidance(
            "input" if self.embed else "fixed", self.low, self.high, (self.low + self.high) / 2
        )


def learned(asked: GuidanceRange | None, model: Any, by: GuidedBy, name: str) -> GuidanceRange:
    """The guidance that a student of this model learns by the method `name`: what is asked for or,
    where nobody says, what the model gives by itself: the range of scales that it reads, or the
    scale at which it samples. by: what the method guides. ValueError for what it cannot learn.
    """
    teacher, told = model.guidance, "guidance" in model.denoiser.inputs
    default = teacher.default if teacher.kind == "doubled" else 1.0
    if by == "nothing":
        if told:
            raise ValueError(
                f"the teacher reads its guidance, which {name} cannot teach, for it asks no teacher"
            )
        if asked is None and default != 1:
            raise ValueError(
                f"the teacher samples with guidance {default:g}, which {name} cannot teach, for it "
                f"asks no teacher: set method.guidance=1 to learn without it"
            )
        if asked is not None and asked != GuidanceRange():
            raise ValueError(f"{name} asks no teacher that could be guided: guidance must be 1")
        return GuidanceRange()
    if by == "teacher":
        _check_teacher(asked, model, name)
    if asked is not None:
        return asked
    if told:
        return GuidanceRange(teacher.low, teacher.high, embed=True)
    return GuidanceRange(default, default)


def _check_teacher(asked: GuidanceRange | None, model: Any, name: str) -> None:
    """ValueError for a teacher that is no denoiser, or that cannot be guided as asked."""
    if isinstance(model.denoiser.parameterization, Boundary):
        raise ValueError(
            f"the teacher is a consistency model, whose answer is where a trajectory ends: {name} "
            f"needs the model that it was made from (give this one as start)"
        )
    kind, default = model.guidance.kind, model.guidance.default
    if kind == "fixed" and asked is not None:
        raise ValueError(
            f"the teacher was distilled at guidance {default:g} and cannot be guided again: leave "
            f"guidance out (null), and its student has the same"
        )
    if kind == "none" and asked is not None and not asked.plain:
        raise ValueError(
            "the teacher has no unconditional side that was trained: guidance must be 1"
        )
