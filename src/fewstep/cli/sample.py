"""`fewstep sample`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.diffusion.samplers import Sampler
    from fewstep.models.bundle import DiffusionModel


def sample(
    model: str = typer.Argument(help="A run's folder, a model's folder, or a shipped model."),
    out: Path = typer.Option(
        help="x.npz (arr_0 images, arr_1 labels), x.png (a grid), or a folder of PNG files."
    ),
    num: int | None = typer.Option(None, min=1, help="How many images; 16, or one per label."),
    labels: str | None = typer.Option(
        None, help="Class labels, 3,3,5; none given: balanced classes."
    ),
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
    from fewstep.cli.images import check_place, write_images
    from fewstep.metrics.evaluation import samples
    from fewstep.models.bundle import load
    from fewstep.training.config import pick_device

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if dtype not in dtypes:
        raise ValueError(f"no dtype {dtype!r}{did_you_mean(dtype, list(dtypes))}")
    if times is not None and steps is not None:
        raise ValueError("--times says how many steps there are: give it without --steps")
    check_place(out)
    loaded = load(model, ema).to(pick_device(device), dtypes[dtype])
    wanted = None if labels is None else _labels(labels)
    if wanted is not None and num is not None and num != len(wanted):
        wanted = wanted.repeat(num // len(wanted) + 1)[:num]
    chosen = _sampler(loaded, sampler, times)
    count = num or (16 if wanted is None else len(wanted))
    images, used, rate = samples(
        loaded,
        count,
        seed,
        labels=wanted,
        steps=steps,
        sampler=chosen,
        guidance=guidance,
        batch=batch,
    )
    write_images(out, images, used)
    final = chosen if steps is None else chosen.with_steps(steps)
    each = loaded.evaluations(final, guidance)
    print(
        f"{out}: {count} images, {final.steps} steps, {each} evaluations each, {rate:,.0f} images/s"
    )


def _labels(text: str) -> Tensor:
    import torch

    try:
        return torch.tensor([int(word) for word in text.split(",")])
    except ValueError:
        raise ValueError(
            f"--labels {text!r}: expected whole numbers with commas between them"
        ) from None


def _sampler(model: DiffusionModel, name: str | None, times: str | None) -> Sampler:
    """The model's own sampler, or another one, with explicit times where they are given."""
    from dataclasses import replace

    from fewstep.diffusion.samplers import Ode, Sampler
    from fewstep.diffusion.solvers import Solver
    from fewstep.diffusion.times import Explicit

    chosen = model.sampler
    if name is not None:
        kinds = Solver.kinds()
        ode = next(
            (kind for key, kind in kinds.items() if key.replace("_", "") == name.replace("_", "")),
            None,
        )
        others = {k: v for k, v in Sampler.kinds().items() if v is not Ode}
        if ode is None and name not in others:
            from fewstep.choice import did_you_mean

            raise ValueError(f"no sampler {name!r}{did_you_mean(name, [*kinds, *others])}")
        chosen = (
            Ode(steps=chosen.steps, solver=ode())
            if ode
            else others[name]().with_steps(chosen.steps)
        )
    if times is None:
        return chosen
    try:
        points = tuple(float(word) for word in times.split(","))
    except ValueError:
        raise ValueError(f"--times {times!r}: expected numbers with commas between them") from None
    top = model.denoiser.process.t_max
    if not abs(points[0] - top) <= 1e-6 * top:
        raise ValueError(
            f"--times must begin at {top:g}, where this model's noise begins, got {points[0]:g}"
        )
    grid = Explicit((points[1:],), end=chosen.times.end)
    return replace(chosen, steps=len(points), times=grid)  # type: ignore[type-var]
