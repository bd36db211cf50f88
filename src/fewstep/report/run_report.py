"""The report of a run: how it went, what its samples look like and, where measured, how good they
are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import __version__
from fewstep.metrics.results import Result, scales_of
from fewstep.report.comparison import Comparison
from fewstep.report.figures import curves, histogram, tradeoff
from fewstep.report.page import Section, write_page
from fewstep.report.tables import Table, table
from fewstep.training.health import verdict
from fewstep.training.log import read_log

MEANINGS = {
    "held_out_loss": "the loss on images that are never trained on, with the same noise each time",
    "distance": "of samples to the teacher's of the same noise, root mean square; lower is nearer",
    "contrast": "spread of the pixels of a sample, as a multiple of the teacher's; 1 is right",
    "diversity": "spread between samples, as a multiple of the teacher's; 1 is right",
}
"""What the health numbers of a run say."""


def quality_section(results: Sequence[Result]) -> Section:
    """The table of results, what its headline rows say, and what its columns mean."""
    text = _headline(results)
    for result in results:
        if result.role == "data":
            text += f"The {result.model} row is what {result.protocol.num:,} unseen images reach."
            if result.protocol.num < max(one.protocol.num for one in results):
                text += (
                    " Of fewer images a Fréchet distance is larger: it is no bound for the others."
                )
    meanings = {}
    for scale in scales_of(results).values():
        meanings[scale.heading] = f"{scale.about}; {scale.better} is better"
    return Section("Quality", text, table(results), figures=_tradeoff(results), facts=meanings)


def _tradeoff(results: Sequence[Result]) -> list[str]:
    """The first measure against the evaluations, where one model has it at several; the data's own
    value where as many images of them were measured.
    """
    kind, scale = next(iter(scales_of(results).items()))
    series: dict[str, list[tuple[int, float]]] = {}
    level = None
    for result in results:
        value = result.values.get(kind)
        if value is not None and result.evaluations:
            series.setdefault(result.model, []).append((result.evaluations, value))
        elif result.role == "data" and result.protocol.num == results[0].protocol.num:
            level = value
    if all(len(points) < 2 for points in series.values()):
        return []
    return [tradeoff(series, scale.heading, level)]


def _headline(results: Sequence[Result]) -> str:
    """How the student's headline row compares with the teacher's; '' where one has none."""
    rows = {result.role: result for result in results if result.headline}
    student, teacher = rows.get("student"), rows.get("teacher")
    if student is None or teacher is None:
        return ""
    assert student.images_per_second
    assert teacher.images_per_second
    faster = student.images_per_second / teacher.images_per_second
    kind, scale = next(iter(scales_of([student, teacher]).items()))
    mine, its = scale.shown(student.values.get(kind)), scale.shown(teacher.values.get(kind))
    return (
        f"With {student.cost} the student makes images {faster:.1f} times as fast as the teacher "
        f"with {teacher.cost}; its {scale.name} is {mine} against {its}. "
    )


def progress_section(folder: Path) -> Section:
    """Loss and health curves of the run's log, and what they say."""
    lines = read_log(folder / "log.jsonl")
    keys = list(lines[-1]) if lines else []
    losses = [k for k in keys if "." not in k and k not in ("step", "rate", "skipped")]
    health = [k for k in keys if k.startswith("health.") and k != "health.held_out_loss"]
    figures = [
        curves(lines, [*losses, "health.held_out_loss"], "loss", log_scale=True),
        curves(lines, [k for k in keys if k.startswith("norm.")], "gradient norm", log_scale=True),
    ]
    if health:
        figures.append(curves(lines, health, "samples of fixed seeds"))
    said = {name: what for name, what in MEANINGS.items() if f"health.{name}" in keys}
    facts = {name.replace("_", " "): what for name, what in said.items()}
    return Section("Training", verdict(lines), figures=figures, facts=facts)


def comparison_section(comparison: Comparison) -> Section:
    """Images of the same seeds, model beside model."""
    text = f"Look at them: {'; '.join(comparison.striking)}." if comparison.striking else ""
    return Section("Samples of the same seeds", text, comparison=comparison)


def memory_section(distances: dict[str, tuple[Tensor, Tensor]]) -> Section:
    """Nearest-neighbour distances: (to training images, to held-out images) by name of the
    samples.
    """
    rows = []
    for name, (a, b) in distances.items():
        far_nearer = (a < 0.5 * a.median()).double().mean()
        rows.append([name, f"{a.median():.3f}", f"{b.median():.3f}", f"{far_nearer:.1%}"])
    text = (
        "Each sample's distance to its nearest training image and to its nearest held-out image "
        "(root mean square over pixels). Copied images would show as samples much nearer to the "
        "training images than fresh ones are."
    )
    columns = ["samples", "median to training", "median to held-out", "far nearer than most"]
    to_training = {name: found[0] for name, found in distances.items()}
    figures = [histogram(to_training, "to the nearest training image", "distance")]
    return Section("Memorisation", text, Table(columns, rows, texts=1), figures=figures)


def write_report(
    folder: Path, title: str, sections: Sequence[Section], facts: dict[str, Any]
) -> Path:
    """Writes report.html of a run, with its protocol and its run file at the end."""
    run_file = folder / "run.yaml"
    end = [
        Section(
            "Protocol",
            facts=facts | {"fewstep": __version__, "torch": torch.__version__},
        )
    ]
    if run_file.is_file():
        end.append(Section("Run file", code=run_file.read_text(encoding="utf-8")))
    path = folder / "report.html"
    write_page(path, title, f"Folder {folder}", [*sections, *end])
    return path


def write_quality(path: Path, title: str, results: Sequence[Result]) -> None:
    """Writes a page of results alone, with the protocol of the first."""
    sections = [quality_section(results), Section("Protocol", facts=results[0].protocol.told())]
    write_page(path, title, "", sections)
