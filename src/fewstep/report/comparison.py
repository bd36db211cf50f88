"""Images of models side by side: a column for each model, a row for each number of network
evaluations, the same seeds everywhere, and real images last.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewstep.data.captions import all_of
from fewstep.data.dataset import Dataset
from fewstep.diffusion.samplers import Ode, Sampler
from fewstep.diffusion.solvers import Euler
from fewstep.errors import NotFiniteError
from fewstep.files import new_folder, read_json, write_json
from fewstep.images.grid import as_bytes, grid_image
from fewstep.models.bundle import DiffusionModel
from fewstep.models.request import Answer, Request
from fewstep.report.looks import looks
from fewstep.text import counted

STEPS = (1, 2, 4)
MOST = ((32, 10), (64, 8), (math.inf, 5))  # images in a row, by their width
CELL, ROW = 48, 512  # pixels that a small image is enlarged to, at least, and those of a row
LARGE = 128  # pixels that a large image is made smaller to
SECONDS = 60.0  # that the drawing of all rows may take
MANIFEST = "comparison.json"


class Shown(NamedTuple):
    """What the images of every row show, from left to right: what models are asked for, its words,
    and real images of it, (n, channels, height, width) in [0, 1].
    """

    asked: Mapping[str, Any]
    words: Sequence[str]
    real: Tensor | None = None


@dataclass
class Comparison:
    """Rows of images, ready for a page.

    columns: names of the models. words: what is shown, from left to right. rows: a label, and for
    each column a picture of that row's images, or None. real: a picture of real images. notes: what
    was left out, and why. striking: what is wrong at first sight with samples that are a
    model's usual ones.
    """

    columns: list[str]
    words: list[str]
    rows: list[tuple[str, list[Image.Image | None]]]
    real: Image.Image | None = None
    notes: list[str] = field(default_factory=list)
    striking: list[str] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Writes it, so that a page can be made again without sampling."""
        rows = []
        with new_folder(folder) as beside:
            for i, (label, cells) in enumerate(self.rows):
                files = []
                for j, picture in enumerate(cells):
                    files.append(_saved(picture, beside, f"{i}-{j}.png"))
                rows.append([label, files])
            told = {
                "columns": self.columns,
                "words": self.words,
                "notes": self.notes,
                "striking": self.striking,
            }
            real = _saved(self.real, beside, "real.png")
            write_json(beside / MANIFEST, {**told, "rows": rows, "real": real})

    @staticmethod
    def load(folder: Path) -> Comparison | None:
        """What `save` wrote there; None where nothing was."""
        if not (folder / MANIFEST).is_file():
            return None
        told = read_json(folder / MANIFEST)
        rows = []
        for label, files in told["rows"]:
            rows.append((label, [_loaded(folder, file) for file in files]))
        real = _loaded(folder, told["real"])
        striking = told.get("striking", [])  # an older fewstep did not look
        return Comparison(told["columns"], told["words"], rows, real, told["notes"], striking)


def _saved(picture: Image.Image | None, folder: Path, name: str) -> str | None:
    if picture is None:
        return None
    picture.save(folder / name)
    return name


def _loaded(folder: Path, name: str | None) -> Image.Image | None:
    if name is None:
        return None
    with Image.open(folder / name) as picture:
        return picture.copy()


def shown_of(model: DiffusionModel, dataset: Dataset | None) -> Shown:
    """The first image of each class, or images spread over the data with their captions, as far as
    the model reads either; of what it was trained on where there are no data.
    """
    reads = model.conditioner.spec.reads
    most = most_of(model)
    if dataset is None:
        asked = model.asked_of(0, most)
        return Shown(asked, _words(asked))
    labels = dataset.labels
    if "label" in reads and labels is not None:
        classes = labels.unique()[:most]
        index = torch.stack([(labels == one).nonzero()[0, 0] for one in classes])
        asked = {"label": labels[index]}
    else:
        count = min(most, len(dataset))
        index = torch.arange(count) * len(dataset) // count
        asked = {}
        if "caption" in reads and {"caption", "captions"} & set(dataset.columns):
            asked = {"caption": [several[0] for several in all_of(dataset, index)]}
    real = dataset.floats(index) if "image" in dataset.columns else None
    return Shown(asked, _words(asked, dataset.notes.get("class names", "")), real)


def most_of(model: DiffusionModel) -> int:
    """How many of its images stand in a row."""
    return next(most for width, most in MOST if model.image_shape[-1] <= width)


def _words(asked: Mapping[str, Any], names: str = "") -> list[str]:
    """In words, one for each image; nothing where nothing is asked."""
    if "caption" in asked:
        return [text or "" for text in asked["caption"]]
    if "label" not in asked:
        return []
    known = [name.strip() for name in names.split(",")]
    return [
        known[label] if label < len(known) and len(known) > 1 and "…" not in names else str(label)
        for label in torch.as_tensor(asked["label"]).tolist()
    ]


def samplers_of(model: DiffusionModel, costs: Sequence[int], serves: Any = None) -> list[Sampler]:
    """Those of a column: one for each number of evaluations that is wanted, of an ODE the Euler
    steps that cost no more; and the model's own. serves: whether a student has so many steps.
    """
    found: dict[int, Sampler] = {}
    own = model.sampler
    for cost in costs:
        if isinstance(own, Ode) and serves is None:
            fits = [n for n in range(1, cost + 1) if _cost(model, Ode(n, solver=Euler())) <= cost]
            if fits:
                sampler: Sampler = Ode(fits[-1], own.times, Euler())
                found[_cost(model, sampler)] = sampler
        elif serves is None or serves(cost):
            sampler = own.with_steps(cost)
            found[_cost(model, sampler)] = sampler
    found[_cost(model, own)] = own
    return [found[cost] for cost in sorted(found)]


def _cost(model: DiffusionModel, sampler: Sampler) -> int:
    return model.evaluations(sampler)


def compared(
    models: Mapping[str, tuple[DiffusionModel, Sequence[Sampler]]],
    shown: Shown,
    seed: int = 0,
    seconds: float = SECONDS,
    say: Callable[[str], None] = print,
) -> Comparison:
    """The comparison of these models, each with its samplers. What would take longer than `seconds`
    in all, and samples that are not finite, are left out and told.
    """
    pictures: dict[int, dict[str, Image.Image]] = {}
    notes: list[str] = []
    striking: list[str] = []
    begun = time.monotonic()
    for name, (model, samplers) in reversed([*models.items()]):  # the student first
        pace = 0.0  # seconds an evaluation of all images took
        for answer in _answers(model, samplers, shown, seed):
            cost = answer.evaluations
            left = seconds - (time.monotonic() - begun)
            if pace * cost > left:
                notes.append(f"{name}, {_evaluations(cost)}: would take {pace * cost:.0f} s")
                continue
            started = time.monotonic()
            try:
                images = answer.images()
            except NotFiniteError as error:
                many = counted(answer.sampler.steps, "step")
                say(f"warning: no samples with {many} in the report: {error}")
                continue
            pace = (time.monotonic() - started) / cost
            pictures.setdefault(cost, {})[name] = strip(images)
            own = answer.sampler == model.sampler  # of fewer steps a teacher's are always poor
            if own and shown.real is not None and (seen := looks(images.cpu(), shown.real)):
                striking.append(f"{name} with {_evaluations(cost)}: {seen}")
    rows = []
    for cost in sorted(pictures):
        cells = [pictures[cost].get(name) for name in models]
        rows.append((_evaluations(cost), cells))
    real = None if shown.real is None else strip(shown.real)
    return Comparison(list(models), list(shown.words), rows, real, notes, striking)


def _answers(
    model: DiffusionModel, samplers: Sequence[Sampler], shown: Shown, seed: int
) -> Iterator[Answer]:
    num = None if shown.asked else most_of(model)
    for sampler in samplers:
        yield model.answer(Request(shown.asked, num=num, sampler=sampler, seed=seed))


def _evaluations(count: int) -> str:
    return counted(count, "evaluation")


def strip(images: Tensor) -> Image.Image:
    """Images in one row, (n, channels, height, width) in [0, 1]: small ones enlarged by a whole
    number, the more the fewer they are, large ones made smaller.
    """
    width = images.shape[-1]
    if width <= LARGE:
        cell = min(LARGE, max(CELL, ROW // len(images)))
        return grid_image(images, len(images), max(1, round(cell / width)))
    high = round(LARGE * images.shape[-2] / width)
    small = []
    for pixels in as_bytes(images):
        picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        small.append(np.asarray(picture.convert("RGB").resize((LARGE, high))))
    return Image.fromarray(np.concatenate(small, 1))
