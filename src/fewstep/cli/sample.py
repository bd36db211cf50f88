"""`fewstep sample`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from torch import Tensor


def sample(
    model: str = typer.Argument(help="A run's folder, a model's folder, or a shipped model."),
    out: Path = typer.Option(
        help="x.npz (arr_0 images, arr_1 labels), x.png (a grid), or a folder of PNG files."
    ),
    num: int | None = typer.Option(None, min=1, help="How many images; 16, or one per label."),
    labels: str | None = typer.Option(
        None, help="Class labels, 3,3,5; none given: balanced classes."
    ),
    prompt: list[str] | None = typer.Option(
        None, help="What a model of captions is to show; once for all images, or once for each."
    ),
    negative: str | None = typer.Option(None, help="What guidance leads away from."),
    steps: int | None = typer.Option(
        None, min=1, help="Solver steps; the model's own number if not given."
    ),
    times: str | None = typer.Option(
        None, help="The times to evaluate at, first to last, 80,0.8; instead of --steps."
    ),
    sampler: str | None = typer.Option(
        None, help="euler, heun, midpoint, dpmpp_2m, renoise or flow_map."
    ),
    guidance: float | None = typer.Option(None, help="Guidance scale; 1 is none."),
    seed: int = typer.Option(0, help="Image i depends on the seed and i alone."),
    batch: int | None = typer.Option(None, min=1, help="Images at a time."),
    device: str = typer.Option("auto", help="cpu, cuda, mps …"),
    dtype: str = typer.Option("fp32", help="fp32, bf16 or fp16."),
    ema: str | None = typer.Option(None, help="One of the run's averages, by its decay."),
) -> None:
    """Makes images.

    Example: fewstep sample runs/demo --steps 2 --num 64 --out grid.png
    """
    import torch

    from fewstep.choice import did_you_mean
    from fewstep.images.files import check_place, write_images
    from fewstep.models.folder import load
    from fewstep.models.request import Request
    from fewstep.training.config import pick_device

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if dtype not in dtypes:
        raise ValueError(f"no dtype {dtype!r}{did_you_mean(dtype, list(dtypes))}")
    check_place(out)
    loaded = load(model, ema).to(pick_device(device), dtypes[dtype])
    asked: dict[str, Any] = {} if labels is None else {"label": _labels(labels)}
    if prompt:
        asked["caption"] = prompt
    away = {} if negative is None else {"caption": [negative]}
    if labels is not None and num is not None:
        asked["label"] = asked["label"].repeat(num // len(asked["label"]) + 1)[:num]
    request = Request(asked, away, num, steps, _times(times), sampler, guidance, seed, batch)
    answer = loaded.answer(request)
    write_images(out, answer.images(), answer.asked.get("label"))
    print(
        f"{out}: {answer.num} images, {answer.sampler.steps} steps, {answer.evaluations} "
        f"evaluations each, {answer.num / answer.seconds:,.0f} images/s"
    )


def _labels(text: str) -> Tensor:
    import torch

    try:
        return torch.tensor([int(word) for word in text.split(",")])
    except ValueError:
        raise ValueError(
            f"--labels {text!r}: expected whole numbers with commas between them"
        ) from None


def _times(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"--times {text!r}: expected numbers with commas between them") from None
