"""Rows of a comparison: a model at a number of network evaluations, sampled, judged and timed."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fewstep.choice import kind_of
from fewstep.diffusion.samplers import Ode, Sampler
from fewstep.diffusion.solvers import Dpmpp2m, Euler, Heun, Solver
from fewstep.metrics.protocol import Reference
from fewstep.models.bundle import DiffusionModel
from fewstep.models.request import Request

SOLVERS: tuple[Solver, ...] = (Euler(), Heun(), Dpmpp2m())


def samples(
    model: DiffusionModel, num: int, seed: int, **options: Any
) -> tuple[Tensor, Tensor | None, float]:
    """`num` images in balanced classes, their labels, and images per second."""
    labels = options.pop("labels", None)
    asked = {} if labels is None else {"label": labels}
    answer = model.answer(Request(asked, num=num, seed=seed, **options))
    images = answer.images()
    return images, answer.asked.get("label"), num / answer.seconds


def row(
    name: str,
    model: DiffusionModel,
    sampler: Sampler,
    reference: Reference,
    num: int,
    seed: int,
    evaluations: int | None = None,
    guidance: float | None = None,
) -> dict[str, Any]:
    """One row of results. `evaluations`: the number allowed, where the sampler may need fewer.

    guidance: in g-form; the model's own if None.
    """
    images, labels, rate = samples(model, num, seed, sampler=sampler, guidance=guidance)
    quality = reference.quality(images, labels, seed=seed, ema=model.card.get("ema"))
    solver = kind_of(type(sampler.solver)) if isinstance(sampler, Ode) else kind_of(type(sampler))
    head = {
        "model": name,
        "solver": solver,
        "steps": sampler.steps,
        "evaluations": evaluations or model.evaluations(sampler, guidance),
    }
    told = {
        "guidance": model.guidance.default if guidance is None else guidance,
        "sampler": sampler.dump(),
    }
    protocol = quality.pop("protocol") | told
    return head | quality | {"images_per_second": round(rate, 1), "protocol": protocol}


def ode_rows(
    name: str,
    model: DiffusionModel,
    reference: Reference,
    allowed: Sequence[int],
    num: int,
    seed: int,
    guidance: float | None = None,
) -> list[dict[str, Any]]:
    """For each number of evaluations the best of the solvers with as many steps as it allows."""
    rows = []
    for evaluations in allowed:
        tried: dict[Solver, Ode] = {}
        for solver in SOLVERS:
            cost = {
                n: model.evaluations(Ode(n, solver=solver), guidance)
                for n in range(1, evaluations + 1)
            }
            fitting = [n for n in cost if cost[n] <= evaluations]
            if fitting and (
                fitting[-1] > 1 or not tried
            ):  # one step is the same for all: it ends at the data
                tried[solver] = Ode(fitting[-1], solver=solver)
        if not tried:
            raise ValueError(f"no solver takes a guided step with {evaluations} network evaluation")
        found = [
            row(name, model, sampler, reference, num, seed, evaluations, guidance)
            for sampler in tried.values()
        ]
        rows.append(min(found, key=lambda r: r["frechet"]))
    return rows


def data_row(images: Tensor, labels: Tensor | None, reference: Reference) -> dict[str, Any]:
    """The row of held-out images: what a perfect model of unseen data reaches with as many
    samples.
    """
    quality = reference.quality(images, labels)
    head = {"model": "data", "solver": None, "steps": 0, "evaluations": 0}
    protocol = quality.pop("protocol")
    return head | quality | {"images_per_second": None, "protocol": protocol}
