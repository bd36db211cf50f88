"""Guidance that a student learns from its teacher, so that one evaluation gives the guided
sample.
"""

from dataclasses import dataclass
from typing import Any

from fewstep.choice import Choice, NonNegative
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoise, Denoiser
from fewstep.diffusion.guidance import Guidance, guided
from fewstep.diffusion.types import Time
from fewstep.learning.batch import Batch
from fewstep.yaml import settled


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

    def one_scale(self, model: Any) -> float:
        """The scale, for methods that learn one. ValueError for a range, for one that the student
        reads, and where the teacher cannot be guided.
        """
        if self.embed or self.low != self.high:
            raise ValueError("this method learns one guidance scale: low = high and embed=false")
        if self.low != 1 and not model.conditioner.null:
            raise ValueError('guidance needs a teacher that knows "no label"')
        return self.low

    def inputs(self, model: Any) -> frozenset[str]:
        """What the student must read beside the teacher's own inputs. ValueError where the teacher
        cannot be guided.
        """
        told = "guidance" in model.denoiser.inputs
        if told and not self.embed:
            raise ValueError(
                "the teacher reads its guidance, so its student does too: set embed=true"
            )
        if not (told or model.conditioner.null or self.low == self.high == 1):
            raise ValueError(
                'guidance needs a teacher that knows "no label"; without it low and high must be 1'
            )
        return frozenset({"guidance"} if self.embed else ())

    def __call__(self, teacher: Denoiser, batch: Batch) -> tuple[Denoise, Cond]:
        """(the teacher under this batch's scales, the condition that the student is given)."""
        scale = self.low + (self.high - self.low) * batch.draws.uniform()
        plain = self.low == self.high == 1 and not (self.embed and "guidance" in teacher.inputs)
        return teacher if plain else guided(teacher, scale), self.told(batch.cond, scale)

    def told(self, cond: Cond, scale: Time) -> Cond:
        """The condition with the scale, where the student reads it."""
        return cond.with_values(guidance=scale) if self.embed else cond

    @property
    def meaning(self) -> Guidance:
        """What the student's guidance argument means; its default is the middle of the range."""
        if self.low == self.high == 1 and not self.embed:
            return Guidance()
        return Guidance(
            "input" if self.embed else "fixed", self.low, self.high, (self.low + self.high) / 2
        )
