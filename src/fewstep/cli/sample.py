"""`fewstep sample`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.begun import load
from fewstep.cli.asked import asked_of, dtype_of
from fewstep.images.files import check_place, write_images
from fewstep.models.request import Request
from fewstep.text import counted
from fewstep.training.config import pick_device
from fewstep.training.progress import sampling_shown


def sample(
    model: str,
    out: Path,
    num: int | None,
    labels: str | None,
    prompt: list[str] | None,
    prompts: Path | None,
    negative: str | None,
    steps: int | None,
    times: str | None,
    sampler: str | None,
    guidance: float | None,
    fading: str | None,
    seed: int,
    batch: int | None,
    device: str,
    dtype: str,
    ema: str | None,
    checkpoint: str | None,
) -> None:
    """Makes images."""
    numbers = dtype_of(dtype)
    check_place(out)
    loaded = load(model, ema, checkpoint).to(pick_device(device), numbers)
    asked = asked_of(labels, prompt, prompts, num)
    away = {} if negative is None else {"caption": [negative]}
    request = Request(
        asked, away, num, steps, _times(times), sampler, guidance, seed, batch, _fading(fading)
    )
    answer = loaded.answer(request)
    with sampling_shown():
        images = answer.images()
    captions = answer.asked.get("caption")
    texts = None if captions is None else [text or "" for text in captions]
    write_images(out, images, _shown(answer.asked.get("label")), texts)
    steps, each = answer.sampler.steps, answer.evaluations
    print(
        f"{out}: {counted(answer.num, 'image')}, {counted(steps, 'step')}, "
        f"{counted(each, 'evaluation')} each, {answer.num / answer.seconds:,.0f} images/s"
    )


def _shown(labels: Any) -> Tensor | None:
    """Labels for files: -1 where there is none."""
    if labels is None or isinstance(labels, Tensor):
        return labels
    return torch.tensor([-1 if label is None else label for label in labels])


def _fading(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        full, none = (float(word) for word in text.split(","))
    except ValueError:
        raise ValueError(f"--fading {text!r}: expected two times, FULL,NONE") from None
    return full, none


def _times(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"--times {text!r}: expected numbers with commas between them") from None
