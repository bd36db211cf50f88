"""`fewstep evaluate`."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewstep.begun import load
from fewstep.choice import replaced
from fewstep.cli.configure import configured, source_of, with_options
from fewstep.cli.data import read_whole
from fewstep.cli.tables import gathered, print_facts, print_table
from fewstep.data.dataset import Dataset
from fewstep.data.folder import Folder
from fewstep.data.source import Source
from fewstep.diffusion.samplers import Ode
from fewstep.diffusion.solvers import Solver
from fewstep.files import write_json
from fewstep.images.files import check_place
from fewstep.metrics.evaluation import Evaluation
from fewstep.metrics.features import Features
from fewstep.metrics.measure import Measure
from fewstep.metrics.reading import check_pictures
from fewstep.metrics.results import Result, read_result
from fewstep.models.bundle import DiffusionModel
from fewstep.models.families import recognised
from fewstep.models.foreign import foreign
from fewstep.parts.autoencoder import Autoencoder
from fewstep.report.comparison import Comparison
from fewstep.report.of_run import SAMPLES, add_result, write_run_page
from fewstep.report.run_report import write_quality
from fewstep.report.tables import table
from fewstep.text import place
from fewstep.training.config import pick_device
from fewstep.training.progress import sampling_shown
from fewstep.training.start import held_out
from fewstep.yaml import words_of

WEAK = 0.9  # of held-out images, in which a judge sees the right class
AS_PICTURES = ("size", "channels", "on_bad")  # options of a source that say how pictures are read


def evaluate(
    what: str,
    options: list[str] | None,
    reference: str | None,
    measures: str | None,
    features: str | None,
    num: int,
    steps: int | None,
    evaluations: int | None,
    solvers: str,
    guidance: float | None,
    teacher: str | None,
    seed: int,
    device: str,
    checkpoint: str | None,
    against: Path | None,
    out: Path | None,
    report: Path | None,
) -> None:
    """Measures quality, and says under which protocol."""
    _check_places(out, report)
    earlier = None if against is None else read_result(against)
    where = pick_device(device)
    path = place(what)
    holds = _held(path)
    _check_asked(what, holds, steps, evaluations, guidance, teacher)
    words = options or []
    # A reference that is named is looked at first: it takes less time to be wrong than a model.
    named = None if reference is None else read_whole(source_of(reference, words))
    model = None if holds else load(what, None, checkpoint).to(where)
    source, everything, notes = named or read_whole(_own(path, words))
    if model is not None:
        source, everything, notes = _as_large(source, everything, words, model.image_shape)
    data = source.choose(everything)
    evaluation = Evaluation.against(
        data,
        _features(source.judge if features is None else features),
        measures_of(measures),
        also=[Measure.parse(one) for one in source.measures],
        num=num,
        seed=seed,
        split=source.split,
        solvers=_solvers(solvers),
        beside=earlier,
    )
    if holds == "images":
        images, labels = _images_at(path, data, source)
        result, notes = evaluation.of_data(path.name, images, labels), images.notes
    elif model is None:
        values, protocol = evaluation.measured(
            Autoencoder.load(path).reconstructed(data, num, where)
        )
        result, notes = Result(path.name, values, protocol), {"images": "reconstructions"}
    else:
        with sampling_shown():
            result = _of_model(what, model, evaluation, steps, evaluations, guidance, teacher)
    unseen, judge = _unseen(evaluation, held_out(source, everything))
    beside = [] if earlier is None else [earlier]
    _shown([result, *beside, *unseen], {**notes, **judge}, out, report)
    if model is not None:
        _add(path, model, [result, *unseen])


def _own(path: Path, options: Sequence[str]) -> Source:
    """All that a run was trained on; of anything else digits."""
    if not (path / "run.yaml").is_file():
        return source_of("digits", options)
    run, _ = configured(str(path), [])
    return with_options(run.data.whole, options)


def _as_large(
    source: Source, everything: Dataset, options: Sequence[str], shape: tuple[int, ...]
) -> tuple[Source, Dataset, dict[str, str]]:
    """The data with pictures that are squares of a model's size, where no option says another; a
    note says that they are cut. ValueError for latents.
    """
    if everything.shape:  # prompts alone have none, and serve what reads captions
        check_pictures(everything)
    _, side, wide = shape
    there = getattr(source, "size", None)  # pictures that can be cut to a size
    said = any(word.startswith("size=") for word in options)
    if said or "image" not in everything.columns or there is None or side != wide:
        return source, everything, {}
    if there != side and everything.shape[1:] != shape[1:]:
        source = replaced(source, size=side)
        everything = source.read()
    if source.size != side:  # type: ignore[attr-defined]
        return source, everything, {}
    note = f"their middle squares at {side}×{side}, which is what the model makes"
    return source, everything, {"reference pictures": note}


def _check_asked(
    what: str,
    holds: str,
    steps: int | None,
    evaluations: int | None,
    guidance: float | None,
    teacher: str | None,
) -> None:
    """ValueError for a cost that is said twice, and for sampling of what is not sampled."""
    if steps and evaluations:
        raise ValueError("--steps and --evaluations are two ways to say the same: give one of them")
    if holds and any(option is not None for option in (steps, evaluations, guidance, teacher)):
        raise ValueError(
            f"{what} holds {holds}: --steps, --evaluations, --guidance and --teacher are for models"
        )


def _unseen(evaluation: Evaluation, rest: Dataset | None) -> tuple[list[Result], dict[str, str]]:
    """The row of images that training never saw, where there are some, and how good the judge of
    classes is by them.
    """
    found = None if rest is None else evaluation.of_rows("data", rest)
    if found is None:
        return [], {}
    right = found.values.get("confirmed")
    if right is None:
        return [found], {}
    told = f"sees the right class in {right:.1%} of images that are held out"
    if right < WEAK:
        told += ": too few, distances in its features say little"
    return [found], {"judge": told}


def _check_places(out: Path | None, report: Path | None) -> None:
    for path, suffix in ((out, ".json"), (report, ".html")):
        if path is not None:
            check_place(path, (suffix,))


def _add(folder: Path, model: DiffusionModel, results: Sequence[Result]) -> None:
    """Adds results to those of a run that is finished, and to its page."""
    if not ((folder / "run.yaml").is_file() and (folder / "student").is_dir()):
        return
    run, _ = configured(str(folder), [])
    for result in results:
        add_result(folder, result)
    write_run_page(run, folder, model, Comparison.load(folder / SAMPLES))


def _shown(
    results: Sequence[Result], notes: Mapping[str, str], out: Path | None, report: Path | None
) -> None:
    """Prints results, and writes the first (JSON) and all of them (HTML) where that is wanted."""
    if not gathered({"results": [result.plain() for result in results], **notes}):
        found = table(results)
        print_table(found.columns, found.rows, found.texts)
        print_facts({**notes, **results[0].protocol.told()})
    if out is not None:
        write_json(out, results[0].plain())
    if report is not None:
        write_quality(report, f"fewstep evaluate {results[0].model}", results)


def measures_of(text: str | None) -> list[Measure] | None:
    """The measures that a user named, in this order; None where nobody did."""
    if text is None:
        return None
    return [Measure.parse(one) for one in _listed(text, "--measures")]


def _features(text: str | None) -> Features | None:
    if text is None:
        return None
    return Features.parse(words_of(text, "--features") if text.startswith("{") else text)


def _solvers(text: str) -> list[Solver]:
    return [Solver.parse(one) for one in _listed(text, "--solvers")]


def _listed(text: str, option: str) -> list[object]:
    """Names with commas between them, or mappings with options: {kind: x, k: 3}."""
    found = words_of(f"[{text}]", f"{option} {text!r}")
    if not found:
        raise ValueError(f"{option} names nothing")
    return list(found)


def _of_model(
    what: str,
    model: DiffusionModel,
    evaluation: Evaluation,
    steps: int | None,
    evaluations: int | None,
    guidance: float | None,
    teacher: str | None,
) -> Result:
    """The result of a model that is sampled."""
    name, device = place(what).name, model.device
    shape = evaluation.protocol.resolution
    if model.image_shape != shape:
        raise ValueError(
            f"{what} makes images of shape {model.image_shape}, the reference has {shape}"
        )
    companion = None if teacher is None else load(teacher).to(device)
    if evaluations is None:
        sampler = model.sampler if steps is None else model.sampler.with_steps(steps)
        return evaluation.of_model(name, model, sampler, guidance=guidance, teacher=companion)
    if not isinstance(model.sampler, Ode):
        raise ValueError(
            f"{what} has no choice of solvers: --steps says how often its own sampler evaluates it"
        )
    return evaluation.best_solver(name, model, evaluations, guidance=guidance, teacher=companion)


def _held(path: Path) -> str:
    """What is there beside models that are sampled, in words; "" for such, and for nothing."""
    if path.suffix == ".npz":
        return "images"
    if Autoencoder.at(path):
        return "an autoencoder"
    ours = any(path.rglob("model.json")) or (path / "run.yaml").exists()
    a_model = ours or recognised(path)
    return "images" if path.exists() and not a_model else ""


def _images_at(path: Path, reference: Dataset, read_as: Source) -> tuple[Dataset, Tensor | None]:
    """All that lies there, its pictures read as those of a source, and its labels. ValueError where
    classes are named and those of the reference are others.
    """
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    try:
        kind = Source.kind_at(path)
    except ValueError:
        if reason := foreign(path):
            raise ValueError(reason) from None
        raise
    found = (source := _read_alike(kind, path, read_as)).dataset()
    if "image" not in found.columns:
        raise ValueError(f"{path} holds no images, only {', '.join(found.columns)}")
    names, others = (_class_names(one) for one in (found, reference))
    if names and others and names != others:
        raise ValueError(
            f"{path} has the classes {names}, the reference has {others}: which is which cannot be "
            "told; give all classes a folder, or call the images NUMBER_….png with the number of "
            "the class"
        )
    if found.labels is None and isinstance(source, Folder):
        return found, _numbers(source.files_at(path), len(found), reference.classes)
    return found, found.labels


def _read_alike(kind: str, path: Path, other: Source) -> Source:
    """The source of this kind for all that lies at a path, its pictures decoded as another
    source's.
    """
    fields = {field.name for field in dataclasses.fields(Source.kinds()[kind])}
    options = {"kind": kind, "path": str(path), "split": "all"}
    for name, value in other.dump().items():
        if name in AS_PICTURES and name in fields:
            options[name] = value
    return Source.parse(options)


def _numbers(files: Sequence[Path], count: int, classes: int) -> Tensor | None:
    """Labels from whole numbers before `_` in the names of all files, as `fewstep sample` writes
    them: also where there is one class alone, which data would not call classes.
    """
    found = [re.match(r"(\d+)_", file.stem, re.ASCII) for file in files]
    labels = [int(number[1]) for number in found if number]
    told = len(labels) == len(files) == count and max(labels) < classes
    return torch.tensor(labels) if told else None


def _class_names(dataset: Dataset) -> str:
    """Where classes have names that are no numbers, these names; else "" for unknown."""
    names = dataset.notes.get("class names", "") if dataset.labels is not None else ""
    numbers = all(name.strip().isdecimal() for name in names.split(","))
    return "" if numbers or names in ("none", "unknown") else names
