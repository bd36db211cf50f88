"""`fewstep demo shapes`: text to image, on the shipped small Stable Diffusion."""

from collections.abc import Mapping, Sequence

from PIL import Image

from fewstep.cli.configure import configured
from fewstep.cli.tables import print_table
from fewstep.data.dataset import texts
from fewstep.diffusion.samplers import Sampler
from fewstep.files import write_json
from fewstep.images.sheet import sheet
from fewstep.metrics.attribute_diversity import AttributeDiversity
from fewstep.metrics.caption_accuracy import CaptionAccuracy
from fewstep.metrics.evaluation import Evaluation
from fewstep.metrics.features import ClassifierFeatures
from fewstep.metrics.frechet import Frechet
from fewstep.metrics.measure import Measure
from fewstep.models.bundle import DiffusionModel
from fewstep.models.folder import load
from fewstep.models.request import Request
from fewstep.report.page import Section
from fewstep.report.run_report import progress_section, quality_section, write_report
from fewstep.report.tables import table
from fewstep.run import distil

RECIPE = "shapes_lcm_lora"
TEACHER, STUDENT = (50, 4, 2), (4, 2, 1)  # steps
SHORT = ("trainer.steps=300", "trainer.save_every=0", "trainer.health_every=0")
COLUMNS = 8  # prompts in the report
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
    models = {"teacher": load(run.teacher.path), "student": student}  # type: ignore[attr-defined]
    print("sampling and measuring", flush=True)
    results = []
    for role, model in models.items():
        for sampler in _samplers(role, model):
            head = sampler.steps == (max(TEACHER) if role == "teacher" else max(STUDENT))
            result = evaluation.of_model(role, model, sampler, role=role, headline=head)  # type: ignore[arg-type]
            results.append(result)
    write_json(folder / "results.json", [result.plain() for result in results])
    prompts = texts(held_out, ["caption"], COLUMNS)["caption"]
    sections = [
        quality_section(results),
        Section("Samples of the same noise", pictures=[("", _pictures(models, prompts, seed))]),
        progress_section(folder),
    ]
    heads = [result for result in results if result.headline]
    page = write_report(folder, "fewstep demo shapes", sections, heads[-1].protocol.told())
    found = table(results)
    print_table(found.columns, found.rows, found.texts)
    print(f"report: {page}\nresults: {folder / 'results.json'}\nstudent: {folder / 'student'}")


def _samplers(role: str, model: DiffusionModel) -> list[Sampler]:
    steps = TEACHER if role == "teacher" else STUDENT
    return [model.sampler.with_steps(n) for n in steps]


def _pictures(
    models: Mapping[str, DiffusionModel], prompts: Sequence[str | None], seed: int
) -> Image.Image:
    """A row for each model and number of steps, a column for each prompt."""
    rows, beside = [], []
    for role, model in models.items():
        for sampler in _samplers(role, model):
            answer = model.answer(Request({"caption": list(prompts)}, sampler=sampler, seed=seed))
            rows.append(answer.images())
            beside.append(f"{role}\n{sampler.steps} steps, {answer.evaluations} evaluations")
    return sheet(rows, beside, [prompt or "" for prompt in prompts])
