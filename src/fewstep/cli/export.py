"""`fewstep export`."""

from pathlib import Path

from fewstep.choice import did_you_mean
from fewstep.files import check_utf8
from fewstep.images.files import check_place
from fewstep.models.folder import load
from fewstep.text import place


def export(model: str, to: str, out: Path | None, ema: str | None) -> None:
    """Writes a model in a format of others, and says how far the images differ there."""
    if to != "diffusers":
        raise ValueError(f"no format {to!r}{did_you_mean(to, ['diffusers'])}")
    from fewstep.export.diffusers import export_diffusers  # an extra: it may not be installed

    loaded = load(model, ema)
    folder = out or place(model) / to
    if out is None and not place(model).is_dir():
        folder = Path("runs") / f"{model}-{to}"
    check_utf8(folder)
    # What is there is replaced: it must have been an export.
    if not (folder / "fewstep.json").is_file():
        check_place(folder)
    difference = export_diffusers(loaded, folder)
    print(f"{folder}: loads in diffusers, largest pixel difference {difference:.1e}")
