"""The page of a run, as `train` writes it, `report` writes it again and `evaluate` adds to it."""

from __future__ import annotations

import datetime
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fewstep.choice import kind_of
from fewstep.data.dataset import Dataset
from fewstep.diffusion.samplers import Sampler
from fewstep.export.schedules import obstacle
from fewstep.files import read_json, write_json
from fewstep.metrics.results import Result, Role
from fewstep.models.adapters import FullCopy
from fewstep.models.bundle import DiffusionModel
from fewstep.models.source import Saved
from fewstep.report.comparison import (
    SECONDS,
    STEPS,
    Comparison,
    compared,
    samplers_of,
    shown_of,
)
from fewstep.report.measured import measured
from fewstep.report.page import Section
from fewstep.report.run_report import (
    comparison_section,
    progress_section,
    quality_section,
    write_report,
)
from fewstep.text import counted, lasted
from fewstep.training.config import pick_device
from fewstep.training.progress import sampling_shown
from fewstep.training.run_folder import RESULTS, RunFolder

SAMPLES = "report"  # in the folder of a run


def drawn(
    run: Any, model: Any, seconds: float = SECONDS, say: Callable[[str], None] = print
) -> Comparison | None:
    """Samples of the run's model beside its teacher's, and real images; None for what makes no
    images. What cannot be had (data or a teacher that are gone) is told and left out.
    """
    if not isinstance(model, DiffusionModel):
        return None
    dataset = _had(run.data.dataset, "real images", say)
    models = columns_of(run, model, dataset, say)
    with sampling_shown():
        return compared(models, shown_of(model, _pictures(dataset)), 0, seconds, say)


def columns_of(
    run: Any, model: DiffusionModel, dataset: Dataset | None, say: Callable[[str], None]
) -> dict[str, tuple[DiffusionModel, list[Sampler]]]:
    """The run's model behind its teacher, where that can be had, each with its samplers."""
    model.to(pick_device(run.trainer.device))
    serves = None if run.method.fine_tunes else run.method.serves
    samplers = samplers_of(model, STEPS, serves)
    column = "model" if run.method.fine_tunes else "student"
    models = {column: (model, samplers)}
    if isinstance(run.teacher, Saved) and dataset is not None:
        teacher = _had(lambda: run.teacher.load_for(dataset, 0), "teacher", say)
        if teacher is not None:
            teacher.to(model.device)
            costs = [model.evaluations(sampler) for sampler in samplers]
            before = "before" if run.method.fine_tunes else "teacher"
            models = {before: (teacher, samplers_of(teacher, costs)), **models}
    return models


def measure(
    run: Any, folder: Path, model: DiffusionModel, num: int, say: Callable[[str], None] = print
) -> None:
    """Measures model and teacher with so many images for each number of evaluations, and adds that
    to what the run's page shows.
    """
    dataset = _had(run.data.dataset, "real images", say)
    for result in measured(run, columns_of(run, model, dataset, say), num, say=say):
        add_result(folder, result)


def _had(get: Callable[[], Any], what: str, say: Callable[[str], None]) -> Any:
    try:
        return get()
    except (OSError, ValueError) as error:
        say(f"no {what} in the report: {error}")
        return None


def _pictures(dataset: Dataset | None) -> Dataset | None:
    """The data, where it tells what to ask for."""
    encoded = dataset is not None and "embedding" in dataset.columns
    return None if encoded else dataset


def page_of(
    run: Any, folder: Path, model: Any, seconds: float = SECONDS, say: Callable[[str], None] = print
) -> Path:
    """Draws samples, keeps them in the run's folder, and writes its page."""
    say("drawing samples for the report")
    comparison = drawn(run, model, seconds, say)
    if comparison is not None:
        comparison.save(folder / SAMPLES)
        for seen in comparison.striking:
            say(f"warning: samples look wrong, {seen}")
    return write_run_page(run, folder, model, comparison)


def write_run_page(
    run: Any, folder: Path, model: Any, comparison: Comparison | None, extra: Sequence[Section] = ()
) -> Path:
    """Writes report.html of a run: what was measured, samples, curves, facts."""
    sections = []
    groups = _alike(results_of(folder))
    for results in groups:
        section = quality_section(results)
        if len(groups) > 1:  # which cannot be compared
            section.title += f", {_protocol(results[0])}"
        sections.append(section)
    if comparison is not None and (comparison.rows or comparison.real):
        sections.append(comparison_section(comparison))
    sections += [
        progress_section(folder),
        *extra,
        Section("Run", facts=facts_of(run, folder, model)),
    ]
    heads = [result for result in results_of(folder) if result.headline] or results_of(folder)
    return write_report(folder, folder.name, sections, heads[-1].protocol.told() if heads else {})


def results_of(folder: Path) -> list[Result]:
    """What was measured of a run; ValueError for a file that holds something else."""
    path = folder / RESULTS
    if not path.is_file():
        return []
    found = read_json(path)
    if not isinstance(found, list):
        raise ValueError(f"{path} is no list of results")
    return [Result.of_plain(plain) for plain in found]


def add_result(folder: Path, result: Result) -> None:
    """Adds to what was measured of a run, in the place of an earlier result of the same."""
    kept = [other for other in results_of(folder) if _what(other) != _what(result)]
    write_json(folder / RESULTS, [one.plain() for one in [*kept, result]])


def _what(result: Result) -> tuple[Any, ...]:
    """All but the values: the same model, sampled and measured in the same way."""
    role: Role = result.role
    return result.model, role, result.steps, result.evaluations, str(result.protocol.plain())


def _alike(results: Sequence[Result]) -> list[list[Result]]:
    """Those that may be compared, together."""
    groups: list[list[Result]] = []
    for result in results:
        for group in groups:
            first = group[0].protocol
            if not replace(first, num=result.protocol.num).differs(result.protocol):
                group.append(result)
                break
        else:
            groups.append([result])
    return groups


def _protocol(result: Result) -> str:
    """What tells tables apart."""
    protocol = result.protocol
    measures = ", ".join(scale.name for scale in protocol.measures.values())
    against = f"against {counted(protocol.reference_images, 'image')} ({protocol.reference[:6]})"
    return f"{counted(protocol.num, 'sample')} {against}: {measures}"


def facts_of(run: Any, folder: Path, model: Any) -> dict[str, Any]:
    """What a reader has to know to judge the run, to repeat it and to go on."""
    method, trainer, data = run.method, run.trainer, run.data
    card = model.card if isinstance(model, DiffusionModel) else {}
    paper = (inspect.getdoc(sys.modules[type(method).__module__]) or "").partition("\n\n")[0]
    source = run.start or run.teacher
    facts = {"method": f"{kind_of(type(method))}: {' '.join(paper.split())}"}
    facts["teacher"] = source.told().get("base", "none: a new network")
    images = card.get("data", {}).get("images")
    many = f", {images:,} rows" if images else ""
    facts["data"] = f"{kind_of(type(data))} {getattr(data, 'path', '')}".strip() + many
    if isinstance(model, DiffusionModel):
        network = model.denoiser.network
        count = sum(parameter.numel() for parameter in network.parameters())
        spec: Any = network.spec
        facts["network"] = f"{kind_of(type(spec))}, {count:,} parameters"
        facts["images"] = "×".join(map(str, model.image_shape))
    facts["training"] = (
        f"{counted(trainer.steps, 'step')} of {counted(trainer.batch, 'row')}, seed {trainer.seed}"
    )
    device = pick_device(trainer.device)
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    status = RunFolder(folder).status()
    if device.type == "cpu" and (threads := status.get("threads")):
        named += f", {counted(threads, 'thread')}"
    facts["device"] = named
    if seconds := status.get("seconds"):
        facts["time"] = lasted(seconds)
    facts["written"] = datetime.date.today().isoformat()
    facts["again"] = f"fewstep train {folder}/run.yaml name={folder.name}-again"
    if isinstance(model, DiffusionModel):
        facts["next"] = "; ".join(_next(run, folder, model))
    return facts


def _next(run: Any, folder: Path, model: DiffusionModel) -> list[str]:
    """Commands that go on from a finished run."""
    found = [] if results_of(folder) else [f"fewstep report {folder} --num 1000"]
    found.append(f"fewstep sample {folder} --num 16 --out images.png")
    if not obstacle(model.denoiser, model.sampler):
        whole = isinstance(run.adaptation, FullCopy)
        captions = "caption" in model.conditioner.spec.reads  # of others no tool takes a LoRA
        found.append(
            f"fewstep export {folder} --to {'lora' if captions and not whole else 'diffusers'}"
        )
    return found
