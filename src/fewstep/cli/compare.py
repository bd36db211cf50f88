"""`fewstep compare`."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fewstep.begun import load
from fewstep.cli.asked import asked_of
from fewstep.cli.tables import print_facts, print_table
from fewstep.files import write_bytes
from fewstep.images.files import check_place
from fewstep.images.grid import png
from fewstep.images.sheet import sheet
from fewstep.meant import did_you_mean
from fewstep.models.request import Answer, Request
from fewstep.text import counted, place
from fewstep.training.config import pick_device
from fewstep.training.progress import sampling_shown

OPTIONS = ("steps", "guidance", "sampler", "ema", "checkpoint", "name")
COLUMNS = 8  # where nobody says how many


class Row(NamedTuple):
    """A model and how it is sampled."""

    name: str
    answer: Answer


def compare(
    models: Sequence[str],
    out: Path,
    prompt: list[str] | None,
    prompts: Path | None,
    labels: str | None,
    num: int | None,
    seed: int,
    device: str,
) -> None:
    """Makes the same images by several models: a row each, of the same noise in each column."""
    check_place(out, (".png",))
    where = pick_device(device)
    asked = asked_of(labels, prompt, prompts, num)
    if prompts is not None and num is None:
        asked["caption"] = asked["caption"][:COLUMNS]
    rows = [_row(text, asked, num, seed, where) for text in models]
    shapes = {row.answer.model.image_shape: row.name for row in rows}
    if len(shapes) > 1:
        told = ", ".join(f"{name} makes {shape}" for shape, name in shapes.items())
        raise ValueError(f"images of different shapes: {told}")
    with sampling_shown():
        pictures = [row.answer.images() for row in rows]
    beside = [f"{row.name}\n{_how(row.answer)}" for row in rows]
    write_bytes(out, png(sheet(pictures, beside, _titles(rows[0].answer.asked))))
    table = []
    for row in rows:
        answer = row.answer
        seconds = f"{answer.seconds / answer.num:.3f}"
        table.append([row.name, str(answer.sampler.steps), str(answer.evaluations), seconds])
    print_table(["model", "steps", "evaluations", "seconds/image"], table, texts=1)
    print_facts({str(out): f"{len(rows)} rows of {len(pictures[0])} images, seed {seed}"})


def _row(
    text: str, asked: Mapping[str, Any], num: int | None, seed: int, device: torch.device
) -> Row:
    """MODEL,steps=4,guidance=3 … : the model, and what is asked of it."""
    path, told = _told(text)
    model = load(path, told.get("ema"), told.get("checkpoint")).to(device)
    request = Request(
        asked,
        num=num or (None if asked else COLUMNS),
        steps=_number(told, "steps", int),
        sampler=told.get("sampler"),
        guidance=_number(told, "guidance", float),
        seed=seed,
    )
    try:
        return Row(told.get("name", place(path).name), model.answer(request))
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from None


def _told(text: str) -> tuple[str, dict[str, str]]:
    """The model and its options. ValueError for options that are not known."""
    path, *words = re.split(r",(?=\w+=)", text)
    told = {}
    for word in words:
        name, value = word.split("=", 1)
        if name not in OPTIONS:
            raise ValueError(f"{text}: no option {name!r}{did_you_mean(name, [*OPTIONS])}")
        told[name] = value
    return path, told


def _number(told: Mapping[str, str], name: str, kind: type) -> Any:
    if name not in told:
        return None
    try:
        return kind(told[name])
    except ValueError:
        raise ValueError(f"{name}={told[name]}: expected a number") from None


def _how(answer: Answer) -> str:
    steps, many = answer.sampler.steps, answer.evaluations
    words = counted(steps, "step")
    if many != steps:
        words += f", {counted(many, 'evaluation')}"
    return words + (f"\nguidance {answer.guidance:g}" if answer.guidance != 1 else "")


def _titles(asked: Mapping[str, Any]) -> list[str]:
    """What stands over each column."""
    if "caption" in asked:
        return [caption or "" for caption in asked["caption"]]
    if "label" in asked:
        return ["no label" if label is None else f"class {int(label)}" for label in asked["label"]]
    return []
