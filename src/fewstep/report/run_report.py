"""The report of a run: how it went, what its samples look like and, where measured, how good they
are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.report.figures import curves, grid_image, histogram
from fewstep.report.page import Section, write_page
from fewstep.training.health import verdict
from fewstep.training.log import read_log

COLUMNS = (
    "model",
    "solver",
    "steps",
    "evaluations",
    "Fréchet distance",
    "confirmed",
    "diversity",
    "images/s",
)


def table(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Results as cells: shares in per cent, numbers short."""

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.1%}"

    return [
        [
            r["model"],
            r["solver"] or "",
            str(r["steps"] or ""),
            str(r["evaluations"] or ""),
            f"{r['frechet']:.2f}",
            share(r["confirmed"]),
            share(r["diversity"]),
            "" if r["images_per_second"] is None else f"{r['images_per_second']:,.0f}",
        ]
        for r in results
    ]


def quality_section(results: Sequence[dict[str, Any]]) -> Section:
    """The table of results, with the student's speed-up in words."""
    by_key = {(r["model"], r["evaluations"]): r for r in results}
    best, text = by_key.get(("teacher", 35)), ""
    if best and ("student", 2) in by_key:
        student = by_key["student", 2]
        faster = student["images_per_second"] / best["images_per_second"]
        text = (
            f"With 2 evaluations the student makes images {faster:.1f} times as fast as the "
            f"teacher with 35; its "
            f"Fréchet distance is {student['frechet']:.2f} against {best['frechet']:.2f}. "
        )
    text += (
        "Distance: to the training images, lower is better; the data row is what unseen images "
        "reach. Confirmed: the "
        "classifier sees the class that was asked for. Diversity: mean distance inside a class, "
        "relative to the data's."
    )
    return Section("Quality", text, COLUMNS, table(results))


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
        figures.append(curves(lines, health, "health, on fixed seeds"))
    return Section("Training", verdict(lines), figures=figures)


def samples_section(groups: Sequence[tuple[str, Tensor]], columns: int) -> Section:
    """Grids of the same seeds, one for each (caption, images)."""
    zoom = max(1, 280 // (columns * (groups[0][1].shape[-1] + 1)))
    pictures = [(caption, grid_image(images, columns, zoom)) for caption, images in groups]
    return Section("Samples of the same seeds", pictures=pictures)


def memory_section(distances: dict[str, tuple[Tensor, Tensor]]) -> Section:
    """Nearest-neighbour distances: (to training images, to held-out images) by name of the
    samples.
    """
    rows = [
        [
            name,
            f"{a.median():.3f}",
            f"{b.median():.3f}",
            f"{(a < 0.5 * a.median()).double().mean():.1%}",
        ]
        for name, (a, b) in distances.items()
    ]
    text = (
        "Each sample's distance to its nearest training image and to its nearest held-out image "
        "(root mean square "
        "over pixels). Copied images would show as samples much nearer to the training images than "
        "fresh ones are."
    )
    columns = ("samples", "median to training", "median to held-out", "far nearer than most")
    figures = [
        histogram(
            {f"{n}: to training": d[0] for n, d in distances.items()},
            "nearest training image",
            "distance",
        )
    ]
    return Section("Memorisation", text, columns, rows, figures=figures)


def write_report(
    folder: Path, title: str, sections: Sequence[Section], facts: dict[str, Any]
) -> Path:
    """Writes report.html of a run, with its protocol and its run file at the end."""
    run_file = folder / "run.yaml"
    end = [
        Section(
            "Protocol",
            facts=facts | {"torch": torch.__version__, "threads": torch.get_num_threads()},
        )
    ]
    if run_file.is_file():
        end.append(Section("Run file", code=run_file.read_text(encoding="utf-8")))
    path = folder / "report.html"
    write_page(path, title, f"Folder {folder}", [*sections, *end])
    return path
