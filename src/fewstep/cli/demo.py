"""`fewstep demo`: the main job on what the package ships."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from fewstep.data.dataset import Dataset
    from fewstep.metrics.protocol import Reference
    from fewstep.models.bundle import DiffusionModel
    from fewstep.report.page import Section

TEACHER, STUDENT = (1, 2, 4, 35), (1, 2, 4)


def demo(
    overrides: list[str] | None = typer.Argument(
        None, help="As for train: trainer.steps=200, name=…"
    ),
    num: int = typer.Option(2000, min=20, help="Samples for each row of the table."),
    seed: int = typer.Option(0, help="The seed of the samples."),
) -> None:
    """Distils the shipped digits teacher into a student of 1 to 4 evaluations, measures both,
    writes a report.

    Example: fewstep demo
    """
    from fewstep.cli.configure import configured
    from fewstep.cli.progress import training_progress
    from fewstep.cli.tables import print_table
    from fewstep.files import write_json
    from fewstep.metrics.evaluation import data_row, ode_rows, row
    from fewstep.metrics.protocol import Reference, find_judge
    from fewstep.models.folder import load
    from fewstep.report.run_report import (
        COLUMNS,
        progress_section,
        quality_section,
        table,
        write_report,
    )
    from fewstep.run import distil

    run, folder = configured("digits_cd", ["name=demo", *(overrides or [])])
    with training_progress(run.trainer.steps, "distilling") as watch:
        distil(run, folder, restart=True, watch=watch)
    held_out = run.data.dataset("test")
    reference = Reference.of(run.data.dataset("train"), find_judge(None, held_out.shape))
    teacher, student = load(run.teacher.path), load(folder)  # type: ignore[attr-defined]
    print("sampling and measuring", flush=True)
    results = ode_rows("teacher", teacher, reference, TEACHER, num, seed)
    results += [
        row("student", student, student.sampler.with_steps(n), reference, num, seed)
        for n in STUDENT
    ]
    results.append(data_row(held_out.floats(), held_out.labels, reference))
    write_json(folder / "results.json", results)
    sections = [
        quality_section(results),
        *_pictures(teacher, student, results, reference, held_out, num, seed),
    ]
    sections.insert(2, progress_section(folder))
    page = write_report(
        folder,
        "fewstep demo",
        sections,
        {k: v for k, v in results[0]["protocol"].items() if k != "sampler"},
    )
    print_table(COLUMNS, table(results))
    print(f"report: {page}\nresults: {folder / 'results.json'}\nstudent: {folder / 'student'}")


def _pictures(
    teacher: DiffusionModel,
    student: DiffusionModel,
    results: Sequence[dict[str, Any]],
    reference: Reference,
    held_out: Dataset,
    num: int,
    seed: int,
) -> list[Section]:
    """Same-seed grids of every row, and nearest-neighbour distances of the best rows."""
    from fewstep.diffusion.samplers import Sampler
    from fewstep.metrics.diversity import nearest
    from fewstep.metrics.protocol import rounded
    from fewstep.report.run_report import memory_section, samples_section

    groups = []
    for result in results:
        if result["model"] != "data":
            model = teacher if result["model"] == "teacher" else student
            images = model.generate(
                num=60, sampler=Sampler.parse(result["protocol"]["sampler"]), seed=seed
            )
            groups.append((f"{result['model']}, {result['evaluations']} evaluations", images))
    distances = {}
    for name, model, sampler in (
        ("teacher, 18 steps", teacher, teacher.sampler),
        ("student, 2 steps", student, student.sampler.with_steps(2)),
    ):
        images = rounded(model.generate(num=min(num, 1000), sampler=sampler, seed=seed))
        distances[name] = nearest(images, reference.images), nearest(images, held_out.floats())
    fresh = held_out.floats()
    distances["held-out images"] = nearest(fresh, reference.images), nearest(fresh, fresh)
    return [samples_section(groups, columns=10), memory_section(distances)]
