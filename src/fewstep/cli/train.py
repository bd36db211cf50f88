"""`fewstep train`."""

from fewstep.cli.configure import RUNS, configured
from fewstep.cli.tables import print_options
from fewstep.errors import NotFiniteError, rank
from fewstep.models.bundle import DiffusionModel
from fewstep.models.source import Saved
from fewstep.options import values
from fewstep.recipes import listed
from fewstep.report.run_report import progress_section, samples_section, write_report
from fewstep.run import Run, distil
from fewstep.text import place


def train(recipe: str, overrides: list[str] | None, restart: bool, options: bool) -> None:
    """Trains a teacher or distils a student; an unfinished run goes on where it stopped."""
    run, folder = configured(recipe, overrides or [])
    if options:
        print_options(list(values(run)), "value")
        return
    check_there(run)
    made = distil(run, folder, restart=restart, progress=True)
    if rank():
        return
    if made.already and (folder / "report.html").is_file():
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
            try:
                images.append((caption, model.generate(num=60, steps=steps)))
            except NotFiniteError as error:
                print(f"warning: no samples with {caption} in the report: {error}")
        if images:
            sections.insert(0, samples_section(images, columns=10))
    page = write_report(folder, folder.name, sections, {})
    print(f"finished: {folder}/student, report {page}")


def check_there(run: Run) -> None:
    """FileNotFoundError for a model that a recipe would make, with the command that does."""
    for source in (run.teacher, run.start):
        if not isinstance(source, Saved) or place(source.path).exists():
            continue
        name = place(source.path).name
        if place(source.path) == RUNS / name and name in listed():
            data = getattr(run.data, "path", "")
            words = f"fewstep train {name}" + (f" data.path={data}" if data else "")
            raise FileNotFoundError(f"no run {source.path} yet; train it first: {words}")
