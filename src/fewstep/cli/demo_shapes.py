"""`fewstep demo shapes`: text to image, on the shipped small Stable Diffusion."""

from collections.abc import Mapping, Sequence

from fewstep.cli.configure import configured
from fewstep.cli.tables import print_table
from fewstep.diffusion.samplers import Sampler
from fewstep.files import write_json
from fewstep.metrics.attribute_diversity import AttributeDiversity
from fewstep.metrics.caption_accuracy import CaptionAccuracy
from fewstep.metrics.evaluation import Evaluation
from fewstep.metrics.features import ClassifierFeatures
from fewstep.metrics.frechet import Frechet
from fewstep.metrics.measure import Measure
from fewstep.metrics.results import Result, Role
from fewstep.models.bundle import DiffusionModel
from fewstep.models.folder import load
from fewstep.report.comparison import compared, shown_of
from fewstep.report.of_run import SAMPLES, write_run_page
from fewstep.report.tables import table
from fewstep.run import distil
from fewstep.training.progress import sampling_shown
from fewstep.training.run_folder import RESULTS

RECIPE = "shapes_lcm_lora"
TEACHER, STUDENT = (50, 4, 2), (4, 2, 1)  # steps
SHORT = ("trainer.steps=300", "trainer.save_every=0", "trainer.health_every=0")
NUM = 200


def demo(
    overrides: Sequence[str], num: int | None, seed: int, measures: Sequence[Measure] | None
) -> None:
    """Distils the shipped teacher into a LoRA, measures both, writes a report."""
    run, folder = configured(RECIPE, ["name=demo-shapes", *SHORT, *overrides])
    chosen = measures or [CaptionAccuracy(), AttributeDiversity(), Frechet()]
    held_out = run.data.dataset("test")
    judge = ClassifierFeatures("shapes_classifier")
    evaluation = Evaluation.against(
        held_out, judge, chosen, num=num or NUM, seed=seed, split="test"
    )
    evaluation.served(held_out.columns)  # before the work
    student = distil(run, folder, restart=True, progress=True).student
    teacher = load(run.teacher.path)  # type: ignore[attr-defined]
    models: dict[Role, DiffusionModel] = {"teacher": teacher, "student": student}
    print("sampling and measuring", flush=True)
    with sampling_shown():
        results = _results(evaluation, models)
    write_json(folder / RESULTS, [result.plain() for result in results])
    columns = {str(role): (model, _samplers(role, model)) for role, model in models.items()}
    comparison = compared(columns, shown_of(student, held_out), seed)
    comparison.save(folder / SAMPLES)
    page = write_run_page(run, folder, student, comparison)
    found = table(results)
    print_table(found.columns, found.rows, found.texts)
    print(f"report: {page}\nresults: {folder / RESULTS}\nstudent: {folder / 'student'}")


def _results(evaluation: Evaluation, models: Mapping[Role, DiffusionModel]) -> list[Result]:
    """Of each model, with each of its numbers of steps."""
    results = []
    for role, model in models.items():
        most = max(TEACHER if role == "teacher" else STUDENT)
        for sampler in _samplers(role, model):
            head = sampler.steps == most
            results.append(evaluation.of_model(role, model, sampler, role=role, headline=head))
    return results


def _samplers(role: str, model: DiffusionModel) -> list[Sampler]:
    steps = TEACHER if role == "teacher" else STUDENT
    return [model.sampler.with_steps(n) for n in steps]
