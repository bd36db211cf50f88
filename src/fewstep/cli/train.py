"""`fewstep train`."""

from fewstep.cli.configure import RUNS, configured
from fewstep.cli.tables import print_options
from fewstep.errors import rank
from fewstep.models.source import Fresh, Saved
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
    try:
        page = page_of(run, folder, made.student, say=tell)
    except KeyboardInterrupt:
        print(f"{folder}/student is finished; its page is not: fewstep report {folder} writes it")
        raise
    print(f"finished: {folder}/student, report {page}")


def check_there(run: Run) -> None:
    """FileNotFoundError for a model or part that a recipe would make, with the command of it."""
    for path in named_by(run):
        name = place(path).name
        if place(path).exists() or place(path) != RUNS / name or name not in listed():
            continue
        data = getattr(run.data, "path", "")
        words = f"fewstep train {name}" + (f" data.path={data}" if data else "")
        raise FileNotFoundError(f"no run {path} yet; train it first: {words}")


def named_by(run: Run) -> list[str]:
    """The models and parts that a run takes from elsewhere, in the order in which they are made."""
    found = []
    for source in (run.teacher, run.start):
        if isinstance(source, Saved):
            found.append(source.path)
        if isinstance(source, Fresh):
            found += [path for path in (source.codec_from, source.conditioner_from) if path]
    return found
