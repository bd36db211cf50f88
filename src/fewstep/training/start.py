"""What a run begins with must fit together: data, method, teacher and start; and it must be the
same when the run goes on.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fewstep.choice import Choice, kind_of, plain
from fewstep.data.caching import part_facts
from fewstep.data.dataset import Dataset, texts
from fewstep.data.labels import empty_classes, listed
from fewstep.data.source import Source
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.samplers import Ode
from fewstep.errors import option_errors
from fewstep.learning.method import Method
from fewstep.learning.roles import networks
from fewstep.models.adapters import Adaptation, FullCopy
from fewstep.models.bundle import DiffusionModel
from fewstep.models.codec import CodecModule
from fewstep.models.conditioner import ConditionerModule
from fewstep.models.fingerprint import weights_hash
from fewstep.models.network import Network
from fewstep.models.source import Fresh, ModelSource
from fewstep.models.space import described
from fewstep.text import in_one_line
from fewstep.training.config import difference

USUAL = {"source", "files", "images file", "class names"}  # notes on data that all of a kind have


def held_out(source: Source, everything: Dataset) -> Dataset | None:
    """The test split of a source that trains on the other part; None where nothing is held out."""
    found = source.choose(everything, "test", empty=True) if source.split == "train" else None
    return found if found is not None and len(found) else None


def lacking(method: Method, dataset: Dataset) -> str | None:
    """Why the method cannot be trained on these rows; None where it can."""
    if "x0" in method.needs and not dataset.shape:
        held = described(dataset.columns)
        way = f"; {method.without_data} trains without" if method.without_data else ""
        return f"{kind_of(type(method))} needs images or latents, the data has {held}{way}"
    return None


def with_examples(model: DiffusionModel, dataset: Dataset) -> DiffusionModel:
    """The model with what is asked of it where nobody says: captions of the data; of the classes
    that it knows only those that it is trained on.
    """
    reads = model.conditioner.spec.reads
    examples = model.examples or texts(dataset, reads)
    if "label" in reads and (empty := set(empty_classes(dataset.labels, dataset.classes))):
        trained = [label for label in range(dataset.classes) if label not in empty]
        known = [label for label in examples.get("label", trained) if label in trained]
        examples = {**examples, "label": known or trained}
    return model if examples == model.examples else dataclasses.replace(model, examples=examples)


def told_of(dataset: Dataset, by_class: bool = True) -> list[str]:
    """What a run says of its data before it begins: what was passed over, and what is missing.

    by_class: whether it is asked for images of a class.
    """
    lines = []
    for name, fact in dataset.notes.items():
        if name not in USUAL:
            lines.append(f"data: {in_one_line(name)}: {in_one_line(fact)}")
    empty = empty_classes(dataset.labels, dataset.classes) if by_class else ()
    if empty:
        lines.append(
            f"warning: no images of {len(empty)} of {dataset.classes} classes: {listed(empty)}; "
            "they are not trained"
        )
    return lines


def goes_by_class(method: Method, model: Any) -> bool:
    """Whether labels are read: by the losses, or by the model as a condition."""
    if isinstance(model, DiffusionModel):
        return "label" in model.conditioner.spec.reads
    return "label" in method.needs


def told_of_teacher(method: Method, nets: Any, teacher: ModelSource) -> list[str]:
    """A warning where what is asked for its answers is a new network, which knows nothing."""
    if not (_asks_teacher(method, nets) and isinstance(teacher, Fresh)):
        return []
    return [
        f"warning: the teacher of {kind_of(type(method))} is a new network, whose answers mean "
        "nothing: name a trained model by teacher="
    ]


def told_of_few_steps(method: Method, nets: Any, model: Any) -> list[str]:
    """A warning where what is asked for its answers jumps to the data already; a model of few
    steps along the ODE, as progressive distillation makes them, still answers as one of many.
    """
    if not (isinstance(model, DiffusionModel) and _asks_teacher(method, nets)):
        return []
    along = isinstance(model.sampler, Ode) and "distilled" not in model.card
    if along or not model.distilled:
        return []
    return [
        f"warning: the teacher is a few-step model already ({model.distilled}), whose answers are "
        f"not those that {kind_of(type(method))} learns from: name the model that it was made from"
    ]


def _asks_teacher(method: Method, nets: Any) -> bool:
    return "teacher" in networks(nets) and method.guided_by == "teacher"


def check_nameable(start: Denoiser) -> None:
    """ValueError where no file can say how to build the student's network again: better now than
    when it is trained.
    """
    spec: Network = start.network.spec  # type: ignore[assignment]
    try:
        Network.parse(spec.dump())
    except ValueError as error:
        raise ValueError("; ".join(option_errors(error)) or str(error)) from None


def check_base(adaptation: Adaptation, base: ModelSource) -> None:
    """ValueError for additions to a new network: frozen, its random weights would stay."""
    if isinstance(base, Fresh) and not isinstance(adaptation, FullCopy):
        raise ValueError(
            f"{kind_of(type(adaptation))} freezes the weights that it begins with, and this "
            f"{kind_of(type(base.network))} is new: name a trained model as teacher or start, or "
            f"train all weights with adaptation=full_copy"
        )


def unlike(start: Denoiser, teacher: Denoiser) -> str | None:
    """Why a student of this teacher cannot begin with the weights of `start`; None where it can."""
    if (start.process, start.own) != (teacher.process, teacher.own):
        return f"its process is {start.process.dump()}, the teacher's {teacher.process.dump()}"
    mine, theirs = start.parameterization.prediction, teacher.parameterization.prediction
    if mine != theirs:
        return f"its network predicts {mine.dump()}, the teacher's {theirs.dump()}"
    return None


def otherwise_encoded(dataset: Dataset, model: DiffusionModel) -> str | None:
    """Why rows of a cache are not what this model would make of the data; None where they are, or
    come from no cache.
    """
    if dataset.made_by is None:
        return None
    parts: dict[str, CodecModule | ConditionerModule] = {}
    if "moments" in dataset.columns:
        parts["codec"] = model.codec
    if "caption" in model.conditioner.spec.reads and "embedding" in dataset.columns:
        parts["conditioner"] = model.conditioner
    for name, module in parts.items():
        now = part_facts(module)
        old = dataset.made_by.facts.get(name)
        was = renewed(now, old) if old else old
        if was != plain(now):
            told = difference(was, plain(now))
            return f"the data were cached with another {name} than the model's: {told}"
    return None


def check_not_distilled(begin: DiffusionModel) -> None:
    """ValueError for a few-step model, of which plain training would make a slow one again."""
    if reason := begin.distilled:
        raise ValueError(
            f"what is to be fine-tuned is a few-step model already ({reason}), and plain training "
            f"would make it slow again: train the base that it was made from and carry the LoRA "
            f"over, train beside an adapter that assists, or distil the base again afterwards"
        )


def content(model: DiffusionModel) -> dict[str, Any]:
    """What a model is, wherever it lies: a hash of its weights, and its parts."""
    denoiser = model.denoiser
    return {
        "weights": weights_hash(denoiser.network, model.codec, model.conditioner),
        "network": denoiser.network.spec,
        "process": denoiser.process,
        "own": denoiser.own,
        "parameterization": denoiser.parameterization,
        "codec": model.codec.spec,
        "conditioner": model.conditioner.spec,
        "guidance": model.guidance.told(),
    }


def renewed(now: Any, old: Any) -> Any:
    """What an older fewstep wrote of such choices, as this one writes it: what is missing was not
    there yet, and is what it is now in a mapping, its default in a choice.
    """
    if isinstance(now, Mapping):
        old = old if isinstance(old, Mapping) else {}
        return {k: renewed(v, old[k]) if k in old else plain(v) for k, v in now.items()}
    if not isinstance(now, Choice):
        return old
    try:
        return type(now).parse(old).dump()
    except ValueError:  # it has what this one does not know, which the difference will show
        return old
