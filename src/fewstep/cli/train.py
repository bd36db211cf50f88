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
    from fewstep.cli.tables import print_options
    from fewstep.models.bundle import DiffusionModel
    from fewstep.options import values
    from fewstep.report.run_report import progress_section, samples_section, write_report
    from fewstep.run import distil

    run, folder = configured(recipe, overrides or [])
    if options:
        print_options(list(values(run)), "value")
        return
    made = distil(run, folder, restart=restart, progress=True)
    if rank():
        return
    if made.already:
        print(
            f"{folder} is finished already; --restart would begin again, name=… makes another run"
        )
        return
    sections = [progress_section(folder)]
    model = made.student
    if isinstance(model, DiffusionModel):
        images = []
        served = filter(run.method.serves, (1, 2, 4))
        for steps in sorted({*served, model.sampler.steps}):
            caption = "1 step" if steps == 1 else f"{steps} steps"
            images.append((caption, model.generate(num=60, steps=steps)))
        sections.insert(0, samples_section(images, columns=10))
    page = write_report(folder, folder.name, sections, {})
    print(f"finished: {folder}/student, report {page}")
