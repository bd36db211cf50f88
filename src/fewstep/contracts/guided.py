"""Laws of what a method makes of a guided teacher."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from fewstep.contracts.trial import Trial, changed, students, teacher, weights
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.process import VarianceExploding
from fewstep.models.bundle import DiffusionModel


class Guided(NamedTuple):
    """A guided teacher. weaker: the same, but for its guidance. kinds: what its student's guidance
    may be, if the guidance was learned.
    """

    name: str
    model: DiffusionModel
    weaker: DiffusionModel
    kinds: tuple[str, ...]


def a_guided_teacher_is_distilled_or_refused(trial: Trial) -> str | None:
    """The guidance of the teacher is learned, and the student says so; a method that cannot learn
    it refuses the teacher at the door, in words that name it.
    """
    for one in teachers():
        try:
            tried = trial.prepared(model=one.model)
        except ValueError as error:
            if "guid" in str(error):
                continue
            return f"refuses a teacher {one.name} without a word on guidance: {error}"
        tried.trainer.fit()
        for _, made in students(tried):
            if made.guidance.kind not in one.kinds:
                return f"the student of a teacher {one.name} says {made.guidance}"
        if trial.cls().guidance is not None or made.guidance == one.model.guidance:
            continue  # the method's own range; a teacher that goes on
        weaker = trial.trained(model=one.weaker)
        if not changed(weights(weaker.trainer), weights(tried.trainer)):
            return f"a teacher {one.name} teaches what one without teaches: guidance is ignored"
    return None


def teachers() -> Iterator[Guided]:
    """A teacher for every way to be guided."""
    kinds = ("fixed", "input", "doubled")
    three, one = guided(Guidance("doubled", 1.0, 8.0, 3.0)), guided(Guidance("doubled", 1.0, 8.0))
    yield Guided("that samples at guidance 3", three, one, kinds)
    high, low = (guided(Guidance("input", g, g, g), told=True) for g in (5.0, 1.0))
    yield Guided("that reads its guidance", high, low, ("input",))


def guided(guidance: Guidance, told: bool = False) -> DiffusionModel:
    """The tiny teacher with this guidance. told: it reads the scale."""
    model = teacher(VarianceExploding())
    model.guidance = guidance
    if told:
        old = model.denoiser
        network = old.network.with_inputs({"guidance"})  # type: ignore[operator]
        generator = torch.Generator().manual_seed(2)
        for parameter in network.extra_embed.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        model.denoiser = Denoiser(network, old.process, old.parameterization)
    return model
