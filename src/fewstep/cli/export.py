"""`fewstep export`."""

from pathlib import Path

import typer


def export(
    model: str = typer.Argument(help="A run's folder, a model's folder, or a shipped model."),
    to: str = typer.Option(help="The format: diffusers."),
    out: Path | None = typer.Option(
        None, help="The folder to write; default: beside the model, named after the format."
    ),
    ema: str | None = typer.Option(None, help="One of the run's averages, by its decay."),
) -> None:
    """Writes a model for another library, loads it there and compares images; fails if they differ.

    Example: fewstep export runs/demo --to diffusers
    """
    from fewstep.choice import did_you_mean
    from fewstep.cli.images import check_place

    if to != "diffusers":
        raise ValueError(f"no format {to!r}{did_you_mean(to, ['diffusers'])}")
    from fewstep.export.diffusers import export_diffusers
    from fewstep.models.folder import load

    folder = out or Path(model) / to
    if out is None and not Path(model).is_dir():
        folder = Path("runs") / f"{model}-{to}"
    if not (
        folder / "fewstep.json"
    ).is_file():  # what is there is replaced: it must have been an export
        check_place(folder)
    difference = export_diffusers(load(model, ema), folder)
    print(f"{folder}: loads in diffusers, largest pixel difference {difference:.1e}")
