"""What a run begins with must fit together: data, method, teacher and start."""

from fewstep.choice import kind_of
from fewstep.data.dataset import Dataset
from fewstep.data.source import Source
from fewstep.diffusion.denoiser import Denoiser
from fewstep.errors import option_errors
from fewstep.learning.method import Method
from fewstep.models.network import Network
from fewstep.models.space import described


def held_out(source: Source, everything: Dataset) -> Dataset | None:
    """The test split of a source that trains on the other part; None where nothing is held out."""
    found = source.choose(everything, "test", empty=True) if source.split == "train" else None
    return found if found is not None and len(found) else None


def lacking(method: Method, dataset: Dataset) -> str | None:
    """Why the method cannot be trained on these rows; None where it can."""
    if "x0" in method.needs and not dataset.shape:
        held = described(dataset.columns)
        return f"{kind_of(type(method))} needs images or latents, the data has {held}"
    return None


def check_nameable(start: Denoiser) -> None:
    """ValueError where no file can say how to build the student's network again: better now than
    when it is trained.
    """
    spec: Network = start.network.spec  # type: ignore[assignment]
    try:
        Network.parse(spec.dump())
    except ValueError as error:
        raise ValueError("; ".join(option_errors(error)) or str(error)) from None


def unlike(start: Denoiser, teacher: Denoiser) -> str | None:
    """Why a student of this teacher cannot begin with the weights of `start`; None where it can."""
    if (start.process, start.own) != (teacher.process, teacher.own):
        return f"its process is {start.process.dump()}, the teacher's {teacher.process.dump()}"
    mine, theirs = start.parameterization.prediction, teacher.parameterization.prediction
    if mine != theirs:
        return f"its network predicts {mine.dump()}, the teacher's {theirs.dump()}"
    return None
