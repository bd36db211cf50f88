"""`fewstep report`."""

from fewstep.begun import load
from fewstep.cli.configure import configured
from fewstep.models.bundle import DiffusionModel
from fewstep.report.of_run import measure, page_of
from fewstep.text import place, tell


def report(run: str, seconds: float, num: int | None) -> None:
    """Writes the page of a run again. num: images with which it is measured before."""
    if not (place(run) / "run.yaml").is_file():
        raise FileNotFoundError(f"{run} is no run: it holds no run.yaml")
    configuration, folder = configured(run, [])
    model = None
    if issubclass(configuration.method.trains, DiffusionModel):
        model = load(folder)
    if num is not None:
        if model is None:
            raise ValueError(f"{run} makes no images that could be measured")
        measure(configuration, folder, model, num, tell)
    print(f"report: {page_of(configuration, folder, model, seconds, tell)}")
