"""`fewstep report`."""

from fewstep.begun import load
from fewstep.cli.configure import configured
from fewstep.models.bundle import DiffusionModel
from fewstep.report.of_run import SAMPLES, drawn, write_run_page
from fewstep.text import place


def report(run: str, seconds: float) -> None:
    """Writes the page of a run again."""
    if not (place(run) / "run.yaml").is_file():
        raise FileNotFoundError(f"{run} is no run: it holds no run.yaml")
    configuration, folder = configured(run, [])
    model = None
    if issubclass(configuration.method.trains, DiffusionModel):
        model = load(folder)
    print("drawing samples for the report", flush=True)
    comparison = drawn(configuration, model, seconds)
    if comparison is not None:
        comparison.save(folder / SAMPLES)
    print(f"report: {write_run_page(configuration, folder, model, comparison)}")
