"""`fewstep train`."""

from fewstep.cli.configure import RUNS, configured
from fewstep.cli.tables import print_options
from fewstep.errors import rank
from fewstep.models.source import Saved
from fewstep.options import values
from fewstep.recipes import listed
from fewstep.report.of_run import page_of
from fewstep.run import Run, distil
from fewstep.text import place, tell


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
            f"{folder} is finished already; --restart would begin again, name=… makes another run, "
            "more trainer.steps a longer one"
        )
        return
    page = page_of(run, folder, made.student, say=tell)
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
