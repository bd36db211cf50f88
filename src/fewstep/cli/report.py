"""`fewstep report`."""

from fewstep.begun import write_page
from fewstep.cli.configure import configured


def report(run: str, seconds: float, num: int | None) -> None:
    """Writes the page of a run again. num: images with which it is measured before."""
    _, folder = configured(run, [])  # says which plug-ins a run needs
    print(f"report: {write_page(folder, num, seconds)}")
