"""`fewstep train`."""

import typer

from fewstep.errors import rank


def train(
    recipe: str = typer.Argument(help="A recipe (fewstep inspect recipes) or a run.yaml."),
    overrides: list[str] | None = typer.Argument(
        None, help="name=…, method.bins=18, trainer.steps=2000, teacher=runs/x …"
    ),
    restart: bool = typer.Option(False, help="Begin at step 0, whatever the folder holds."),
    options: bool = typer.Option(
        False, "--options", help="Show the run's options with their values, and end."
    ),
) -> None:
    """Trains a teacher or distils a student; an unfinished run goes on where it stopped.

    Example: fewstep train mnist_cd data.path=mnist teacher=runs/mnist_teacher
    """
    from fewstep.cli.configure import configured
    from fewstep.cli.progress import training_progress
    from fewstep.cli.tables import print_options
    from fewstep.options import values
    from fewstep.report.run_report import progress_section, samples_section, write_report
    from fewstep.run import distil

    run, folder = configured(recipe, overrides or [])
    if options:
        print_options(list(values(run)), "value")
        return
    with training_progress(run.trainer.steps, folder.name) as watch:
        worked = distil(run, folder, restart=restart, watch=watch)
    if rank():
        return
    if not worked:
        print(
            f"{folder} is finished already; --restart would begin again, name=… makes another run"
        )
        return
    sections = [progress_section(folder)]
    if run.method.sampler(_last(run)) is not None:
        from fewstep.models.folder import load

        model = load(folder)
        steps = sorted({1, 2, 4, model.sampler.steps})
        images = [
            ("1 step" if n == 1 else f"{n} steps", model.generate(num=60, steps=n)) for n in steps
        ]
        sections.insert(0, samples_section(images, columns=10))
    page = write_report(folder, folder.name, sections, {})
    print(f"finished: {folder}/student, report {page}")


def _last(run):  # type: ignore[no-untyped-def]
    from fewstep.learning.method import Clock

    return Clock(run.trainer.steps - 1, run.trainer.steps, run.trainer.batch)
