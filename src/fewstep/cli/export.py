"""`fewstep export`."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from fewstep.begun import load
from fewstep.cli.asked import dtype_of
from fewstep.export.card import Card
from fewstep.export.rounding import round_model
from fewstep.files import check_utf8
from fewstep.images.files import check_place
from fewstep.learning.method import Method
from fewstep.meant import did_you_mean
from fewstep.models.adapters import Addition
from fewstep.models.bundle import DiffusionModel
from fewstep.models.conditioner import Labels, Unconditional
from fewstep.models.hub import is_name
from fewstep.models.lora import load_addition
from fewstep.models.named import folder_of
from fewstep.text import counted, place

FORMATS = ("diffusers", "lora")


def export(
    model: str,
    to: str,
    out: Path | None,
    dtype: str,
    ema: str | None,
    checkpoint: str | None,
    steps: int | None,
    base: str | None,
    licence: str,
) -> None:
    """Writes a model in a format of others, and says how far the images differ there."""
    if to not in FORMATS:
        raise ValueError(f"no format {to!r}{did_you_mean(to, [*FORMATS])}")
    stored = dtype_of(dtype)
    card = Card(place(model).name, base, licence)
    loaded = load(model, ema, checkpoint)
    if base is None and loaded.card.get("base"):
        card = replace(card, base=str(loaded.card["base"]))
    if steps is not None:
        loaded.sampler = loaded.sampler.with_steps(steps)
        if not _serves(loaded, steps):
            print(f"warning: it was not made for {counted(steps, 'step')}: look at its images")
    folder = out or place(model) / to
    if out is None and not place(model).is_dir():
        folder = Path("runs") / f"{model}-{to}"
    if base is not None:
        card = replace(card, base=_base_from(base, folder))
    check_utf8(folder)
    # What is there is replaced: it must have been an export.
    if not (folder / "fewstep.json").is_file():
        check_place(folder)
    if to == "lora":
        difference = _lora(loaded, model, ema, folder, card, stored)
        print(f"{folder / card.title}.safetensors: kohya's names, for ComfyUI, A1111 and diffusers")
        for file, strength in loaded.card.get("lora", ()):
            print(f"its base has {file} at {strength:g} in it: that is loaded, too")
    elif isinstance(loaded.conditioner.spec, Labels | Unconditional):
        from fewstep.export.diffusers import export_diffusers  # an extra: it may not be there

        round_model(loaded, stored)
        difference = export_diffusers(loaded, folder, card, stored)
    else:
        from fewstep.export.stable_diffusion import export_pipeline

        round_model(loaded, stored)
        difference = export_pipeline(loaded, folder, card, stored)
    print(f"{folder}: loads in diffusers, largest pixel difference {difference:.1e}")


def _serves(model: DiffusionModel, steps: int) -> bool:
    """Whether the method that made it makes students of so many steps, as far as its card says."""
    told = model.card.get("method")
    if told is None:
        return True
    method = Method.parse(told)
    return method.fine_tunes or method.serves(steps)


def _base_from(base: str, folder: Path) -> str:
    """The base as it is found from an export's folder. ValueError where it is none."""
    if place(base).exists():
        return os.path.relpath(place(base), folder)
    if not is_name(base):
        raise ValueError(
            f"--base {base}: neither a folder or file that is there, nor a name of the hub "
            "(owner/name)"
        )
    return base


def _lora(
    loaded: DiffusionModel,
    model: str,
    ema: str | None,
    folder: Path,
    card: Card,
    dtype: torch.dtype,
) -> float:
    from fewstep.export.lora import export_lora, round_addition

    addition = round_addition(loaded, _addition(loaded, model, ema), dtype)
    return export_lora(loaded, addition, folder, card.title, card, dtype)


def _addition(loaded: DiffusionModel, model: str, ema: str | None) -> Addition:
    """What was trained, without its base: of a checkpoint as it was read, else from its file."""
    if loaded.additions:
        return loaded.additions.get(ema or "", loaded.additions[""])
    folder = folder_of(model)
    if not (folder / "model.json").is_file():
        raise FileNotFoundError(f"{model} is no student of a LoRA")
    return load_addition(folder, ema)
