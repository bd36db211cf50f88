"""`fewstep evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from fewstep.metrics.protocol import Reference


def evaluate(
    what: str = typer.Argument(help="A run, a model, a .npz file or a folder of images."),
    reference: str = typer.Option(
        "digits", help="What to compare with: digits, or a file or folder of data."
    ),
    features: str | None = typer.Option(
        None, help="A classifier: its run's folder; the shipped one of digits if not given."
    ),
    num: int = typer.Option(2000, min=2, help="How many images to sample."),
    steps: int | None = typer.Option(
        None, min=1, help="Solver steps; the model's own number if not given."
    ),
    evaluations: int | None = typer.Option(
        None,
        min=1,
        help="Of a teacher: the best of the solvers (Euler, Heun, DPM++ 2M) with so many network "
        "evaluations.",
    ),
    guidance: float | None = typer.Option(
        None, help="Guidance scale, 1 is none; the model's own if not given."
    ),
    seed: int = typer.Option(0, help="The seed of the samples."),
    against: Path | None = typer.Option(
        None, help="An earlier result of --out: both are shown if they can be compared."
    ),
    out: Path | None = typer.Option(None, help="Writes the result as JSON."),
) -> None:
    """Measures quality: Fréchet distance, confirmed classes, diversity, with the protocol of the
    measurement.

    Example: fewstep evaluate runs/demo --reference digits --steps 2
    """
    from fewstep.cli.configure import source_of
    from fewstep.cli.images import check_place
    from fewstep.files import read_json, write_json
    from fewstep.metrics.protocol import Reference, comparable, find_judge
    from fewstep.report.run_report import COLUMNS, table

    if steps and evaluations:
        raise ValueError("--steps and --evaluations are two ways to say the same: give one of them")
    if out is not None:
        check_place(out, (".json",))
    dataset = source_of(reference).dataset()
    judge = Reference.of(dataset, find_judge(features, dataset.shape))
    result = measured(what, judge, num, steps, evaluations, seed, guidance)
    results = [result]
    if against is not None:
        earlier = read_json(against)
        if not isinstance(earlier, dict) or not isinstance(earlier.get("protocol"), dict):
            raise ValueError(f"{against} is no result of fewstep evaluate --out")
        if reason := comparable(earlier["protocol"], result["protocol"]):
            raise ValueError(
                f"{against} was measured under another protocol and cannot be compared: {reason}"
            )
        results.append(earlier)
    from fewstep.cli.tables import print_table

    print_table(COLUMNS, table(results))
    print(", ".join(f"{k} {v}" for k, v in result["protocol"].items() if k != "sampler"))
    if out is not None:
        write_json(out, result)


def measured(
    what: str,
    judge: Reference,
    num: int,
    steps: int | None,
    evaluations: int | None,
    seed: int,
    guidance: float | None,
) -> dict[str, Any]:
    """The row of what a user named: images that lie there, or a model that is sampled."""
    from fewstep.cli.images import read_images
    from fewstep.diffusion.samplers import Ode
    from fewstep.metrics.evaluation import ode_rows, row
    from fewstep.models.folder import load

    path = Path(what)
    if path.suffix == ".npz" or (
        path.is_dir() and not any(path.rglob("model.json")) and not (path / "run.yaml").exists()
    ):
        if any(option is not None for option in (steps, evaluations, guidance)):
            raise ValueError(
                f"{what} holds images: --steps, --evaluations and --guidance are for models"
            )
        images, labels = read_images(path)
        head = {
            "model": path.name,
            "solver": None,
            "steps": 0,
            "evaluations": 0,
            "images_per_second": None,
        }
        return head | judge.quality(images, labels)
    model = load(what)
    if tuple(model.shape) != (shape := tuple(judge.images.shape[1:])):
        raise ValueError(f"{what} makes images of shape {model.shape}, the reference has {shape}")
    if evaluations is None:
        sampler = model.sampler if steps is None else model.sampler.with_steps(steps)
        return row(path.name, model, sampler, judge, num, seed, guidance=guidance)
    if not isinstance(model.sampler, Ode):
        raise ValueError(
            f"{what} has no choice of solvers: --steps says how often its own sampler evaluates it"
        )
    return ode_rows(path.name, model, judge, (evaluations,), num, seed, guidance)[0]
