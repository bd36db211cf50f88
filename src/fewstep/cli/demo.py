"""`fewstep demo`: the main job on what the package ships."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from fewstep.cli.configure import configured
from fewstep.cli.evaluate import measures_of
from fewstep.cli.tables import print_table
from fewstep.data.dataset import Dataset
from fewstep.diffusion.samplers import Sampler
from fewstep.files import write_json
from fewstep.meant import did_you_mean
from fewstep.metrics.authenticity import nearest
from fewstep.metrics.evaluation import Evaluation
from fewstep.metrics.measure import Measure
from fewstep.metrics.protocol import rounded
from fewstep.metrics.results import Result
from fewstep.models.bundle import DiffusionModel
from fewstep.models.folder import load
from fewstep.report.comparison import compared, shown_of
from fewstep.report.of_run import SAMPLES, write_run_page
from fewstep.report.run_report import memory_section
from fewstep.report.tables import table
from fewstep.run import distil
from fewstep.training.progress import sampling_shown
from fewstep.training.run_folder import RESULTS

DEMOS = ("digits", "shapes")
NUM = 2000
TEACHER, STUDENT = (1, 2, 4, 35), (1, 2, 4)  # evaluations


def demo(words: list[str] | None, num: int | None, seed: int, measures: str | None) -> None:
    """digits or shapes, then options of the run."""
    what, overrides = "digits", list(words or [])
    if overrides and "=" not in overrides[0]:
        what = overrides.pop(0)
    if what not in DEMOS:
        raise ValueError(f"no demo {what!r}{did_you_mean(what, [*DEMOS])}")
    chosen = measures_of(measures)
    if what == "digits":
        _of_digits(overrides, num or NUM, seed, chosen)
        return
    from fewstep.cli import demo_shapes  # which imports what reads captions

    demo_shapes.demo(overrides, num, seed, chosen)


def _of_digits(
    overrides: Sequence[str], num: int, seed: int, chosen: Sequence[Measure] | None
) -> None:
    """Distils the shipped teacher of digits, measures both, writes a report."""
    run, folder = configured("digits_cd", ["name=demo", *overrides])
    training, held_out = run.data.dataset("train"), run.data.dataset("test")
    evaluation = Evaluation.against(training, None, chosen, num=num, seed=seed, split="train")
    evaluation.served(held_out.columns)  # before the work
    student = distil(run, folder, restart=True, progress=True).student
    teacher = load(run.teacher.path)  # type: ignore[attr-defined]
    print("sampling and measuring", flush=True)
    with sampling_shown():
        results = _results(evaluation, teacher, student, held_out)
    write_json(folder / RESULTS, [result.plain() for result in results])
    models = {"teacher": teacher, "student": student}
    columns = {name: (model, _samplers(results, name)) for name, model in models.items()}
    comparison = compared(columns, shown_of(student, training), seed)
    comparison.save(folder / SAMPLES)
    memory = memory_section(_near(evaluation, results, models, training, held_out))
    page = write_run_page(run, folder, student, comparison, [memory])
    found = table(results)
    print_table(found.columns, found.rows, found.texts)
    print(f"report: {page}\nresults: {folder / RESULTS}\nstudent: {folder / 'student'}")


def _results(
    evaluation: Evaluation, teacher: DiffusionModel, student: DiffusionModel, held_out: Dataset
) -> list[Result]:
    """The teacher's best and the student at each cost, and images that training never saw."""
    results = []
    for n in TEACHER:
        head = n == max(TEACHER)
        results.append(evaluation.best_solver("teacher", teacher, n, role="teacher", headline=head))
    for n in STUDENT:
        sampler, head = student.sampler.with_steps(n), n == student.sampler.steps
        results.append(
            evaluation.of_model("student", student, sampler, role="student", headline=head)
        )
    results.append(evaluation.of_images("data", held_out.floats(), held_out.labels, "data"))
    return results


def _samplers(results: Sequence[Result], role: str) -> list[Sampler]:
    """Those with which the rows of a role were sampled."""
    return [Sampler.parse(one.protocol.sampler) for one in results if one.role == role]


def _near(
    evaluation: Evaluation,
    results: Sequence[Result],
    models: Mapping[str, DiffusionModel],
    training: Dataset,
    held_out: Dataset,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Distances of the samples of the headline's rows to their nearest neighbours."""
    samples = []
    for result in results:
        if result.headline:
            sampler = Sampler.parse(result.protocol.sampler)
            num = min(evaluation.num, 1000)
            images = models[result.role].generate(num=num, sampler=sampler, seed=evaluation.seed)
            samples.append((f"{result.model}, {result.cost}", images))
    return _distances(samples, training.floats(), held_out.floats())


def _distances(
    samples: Sequence[tuple[str, Tensor]], training: Tensor, fresh: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Of samples and of fresh images to the nearest training image and the nearest fresh one."""
    found = {}
    for name, images in samples:
        images = rounded(images)
        found[name] = nearest(images, training), nearest(images, fresh)
    found["held-out images"] = nearest(fresh, training), nearest(fresh, fresh)
    return found
