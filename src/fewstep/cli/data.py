"""`fewstep data`."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.choice import kind_of, replaced
from fewstep.cli.configure import source_of
from fewstep.cli.tables import print_facts
from fewstep.data.captions import every, told
from fewstep.data.dataset import Dataset
from fewstep.data.labels import counts, empty_classes, listed
from fewstep.data.sight import sight_of
from fewstep.data.source import Source
from fewstep.images.files import check_place
from fewstep.images.grid import write_grid
from fewstep.models.folder import load_conditioner
from fewstep.models.space import described
from fewstep.recipes.images import side_of

SHOWN = 100
"""Pictures of a contact sheet, at most."""
SIDE = 96
"""Pixels of a side, to which larger pictures of it are made smaller."""


def check(
    source: str, overrides: Sequence[str] | None, model: str | None, sheet: Path | None
) -> None:
    """Reads all of a data source and says what was found, and what comes next."""
    if sheet is not None:
        check_place(sheet, (".png",))
    chosen = source_of(source, overrides or [])
    reader = None if model is None else load_conditioner(model)
    chosen, everything, sizes = read_whole(chosen)
    everything.verify()
    kept = chosen.choose(everything)
    facts: dict[str, object] = {"kind": kind_of(type(chosen)), **everything.notes, **sizes}
    if "image" in everything.columns:
        channels, height, width = everything.shape
        many = "s" if channels > 1 else ""
        facts["images"] = f"{len(everything)} of {height}×{width}, {channels} channel{many}"
    else:
        facts["rows"] = f"{len(everything)} of {described(everything.columns)}"
    if everything.labels is not None:
        facts |= counts(everything.labels, everything.classes)
    facts |= told(everything)
    if reader is not None:
        facts |= _read_by(reader, model, everything)
    for split in ("train", "test"):
        facts[f"split {split}"] = len(chosen.choose(everything, split, empty=True))
    facts["kept with these options"] = (
        f"{len(kept)} (split {chosen.split}), fingerprint {kept.fingerprint()}"
    )
    gone = empty_classes(kept.labels, kept.classes)
    if gone and gone != empty_classes(everything.labels, everything.classes):
        facts["classes without images in what is kept"] = listed(gone)
    if sheet is not None:
        facts["contact sheet"] = f"{sheet}, {_written(sheet, kept)} pictures"
    if command := following(chosen, kept, overrides or [], model):
        facts["next"] = command
    print_facts(facts)


def _read_by(reader: Any, model: str | None, everything: Dataset) -> dict[str, str]:
    """What a model's conditioner makes of the captions."""
    if "caption" not in everything.columns:
        return {f"for {model}": "no captions, by which it is asked"}
    captions = every(everything)
    cut = reader.truncated(captions)
    return {f"captions that {model} cannot read to their end": f"{cut:,} of {len(captions):,}"}


def read_whole(source: Source) -> tuple[Source, Dataset, dict[str, str]]:
    """Everything, pictures of different sizes as the recipes for pictures take them; and a note of
    that. ValueError where that does not help.
    """
    try:
        return source, source.read(), {}
    except ValueError as error:
        if getattr(source, "size", None) != 0:
            raise
        try:
            seen = sight_of(source)
            side = side_of(seen) or seen.side
            squares = replaced(source, size=side)
            everything = squares.read()
        except ValueError:
            raise error from None
    told = f"different; their middle squares at {side}×{side}, another side by size=N"
    return squares, everything, {"sizes": told}


def following(
    source: Source, kept: Dataset, overrides: Sequence[str], model: str | None = None
) -> str:
    """The command that trains on such data; '' where no recipe is for them. model: that of captions
    that they are for.
    """
    path = getattr(source, "path", "")
    options = [f"data.{word}" for word in overrides if "=" in word and not word.startswith("kind=")]
    words = [f"data.path={path}", *options] if path else [f"data={kind_of(type(source))}", *options]
    if "caption" in kept.columns and "image" in kept.columns:
        teacher = [] if model is None else [f"teacher={model}"]
        return f"fewstep plan sd15_lcm_lora {shlex.join([*teacher, *words])}"
    if "image" in kept.columns:
        return f"fewstep train images_teacher {shlex.join(words)}"
    return ""


def _written(file: Path, dataset: Dataset) -> int:
    """Writes pictures that lie evenly in the data, of each class in turn; returns how many."""
    if "image" not in dataset.columns:
        raise ValueError(f"--sheet: the data have no images, only {', '.join(dataset.columns)}")
    index = _spread(dataset.labels, len(dataset))
    images = dataset.floats(index)
    if (longest := max(images.shape[2:])) > SIDE:
        size = [max(1, round(side * SIDE / longest)) for side in images.shape[2:]]
        images = torch.nn.functional.interpolate(images, size, mode="area")
    write_grid(file, images)
    return len(index)


def _spread(labels: Tensor | None, number: int) -> Tensor:
    """The places of pictures that lie evenly; with labels so that the classes come in turn."""
    order = torch.arange(number) if labels is None else labels.argsort(stable=True)
    return order[torch.linspace(0, number - 1, min(number, SHOWN)).round().long()]
