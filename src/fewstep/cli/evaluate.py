"""`fewstep evaluate`."""

from collections.abc import Sequence
from pathlib import Path

from fewstep.cli.configure import source_of
from fewstep.cli.tables import print_facts, print_table
from fewstep.diffusion.samplers import Ode
from fewstep.diffusion.solvers import Solver
from fewstep.files import write_json
from fewstep.images.files import check_place, read_images
from fewstep.metrics.evaluation import Evaluation
from fewstep.metrics.features import Features
from fewstep.metrics.measure import Measure
from fewstep.metrics.results import Result, read_result
from fewstep.models.folder import load
from fewstep.report.run_report import write_quality
from fewstep.report.tables import table
from fewstep.text import place
from fewstep.yaml import words_of


def evaluate(
    what: str,
    reference: str,
    measures: str | None,
    features: str | None,
    num: int,
    steps: int | None,
    evaluations: int | None,
    solvers: str,
    guidance: float | None,
    teacher: str | None,
    seed: int,
    against: Path | None,
    out: Path | None,
    report: Path | None,
) -> None:
    """Measures quality, and says under which protocol."""
    if steps and evaluations:
        raise ValueError("--steps and --evaluations are two ways to say the same: give one of them")
    for path, suffix in ((out, ".json"), (report, ".html")):
        if path is not None:
            check_place(path, (suffix,))
    earlier = None if against is None else read_result(against)
    source = source_of(reference)
    evaluation = Evaluation.against(
        source.dataset(),
        _features(features),
        measures_of(measures),
        num=num,
        seed=seed,
        split=source.split,
        solvers=_solvers(solvers),
        beside=earlier,
    )
    result = measured(what, evaluation, steps, evaluations, guidance, teacher)
    _shown([result] if earlier is None else [result, earlier], out, report)


def _shown(results: Sequence[Result], out: Path | None, report: Path | None) -> None:
    """Prints results, and writes the first (JSON) and all of them (HTML) where that is wanted."""
    found = table(results)
    print_table(found.columns, found.rows, found.texts)
    print_facts(results[0].protocol.told())
    if out is not None:
        write_json(out, results[0].plain())
    if report is not None:
        write_quality(report, f"fewstep evaluate {results[0].model}", results)


def measures_of(text: str | None) -> list[Measure] | None:
    """The measures that a user named, in this order; None where nobody did."""
    if text is None:
        return None
    return [Measure.parse(one) for one in _listed(text, "--measures")]


def _features(text: str | None) -> Features | None:
    if text is None:
        return None
    return Features.parse(words_of(text, "--features") if text.startswith("{") else text)


def _solvers(text: str) -> list[Solver]:
    return [Solver.parse(one) for one in _listed(text, "--solvers")]


def _listed(text: str, option: str) -> list[object]:
    """Names with commas between them, or mappings with options: {kind: x, k: 3}."""
    found = words_of(f"[{text}]", f"{option} {text!r}")
    if not found:
        raise ValueError(f"{option} names nothing")
    return list(found)


def measured(
    what: str,
    evaluation: Evaluation,
    steps: int | None,
    evaluations: int | None,
    guidance: float | None,
    teacher: str | None,
) -> Result:
    """The result of what a user named: images that lie there, or a model that is sampled."""
    path = place(what)
    if _holds_images(path):
        if any(option is not None for option in (steps, evaluations, guidance, teacher)):
            raise ValueError(
                f"{what} holds images: --steps, --evaluations, --guidance and --teacher are for "
                "models"
            )
        return evaluation.of_images(path.name, *read_images(path))
    model = load(what)
    shape = evaluation.protocol.resolution
    if model.image_shape != shape:
        raise ValueError(
            f"{what} makes images of shape {model.image_shape}, the reference has {shape}"
        )
    companion = None if teacher is None else load(teacher)
    if evaluations is None:
        sampler = model.sampler if steps is None else model.sampler.with_steps(steps)
        return evaluation.of_model(path.name, model, sampler, guidance=guidance, teacher=companion)
    if not isinstance(model.sampler, Ode):
        raise ValueError(
            f"{what} has no choice of solvers: --steps says how often its own sampler evaluates it"
        )
    return evaluation.best_solver(
        path.name, model, evaluations, guidance=guidance, teacher=companion
    )


def _holds_images(path: Path) -> bool:
    if path.suffix == ".npz":
        return True
    a_model = any(path.rglob("model.json")) or (path / "run.yaml").exists()
    return path.is_dir() and not a_model
