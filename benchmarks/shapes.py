"""Text to image in few steps, measured on drawn shapes: the shipped teacher over guidance and
steps, and its students.

    python benchmarks/shapes.py [--rows teacher,lcm_lora,mbcd_lora] [--seeds 0,1,2] [--tier two]

A student is its recipe shapes_…, trained with the seed; one that serves one number of steps only
is trained for each. --cache trains from a cache, to the same result in less time (`fewstep data
cache shapes --model shapes_teacher --out DIR`). Tier two is of two objects, whose teacher is
trained before (docs/results/shapes.md says how).

All are asked for the same 1,000 captions of held-out pictures, which leave out half of what is to
be seen: caption accuracy over all, the attributes' variation over what was left free, the Fréchet
distance to the held-out pictures. Other scales of the teacher's guidance than its own are tried
with seed 0 alone. A finished line of docs/results/shapes.json is not measured again. Behind it
docs/results/shapes.md is written anew.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fewstep.choice import replaced
from fewstep.cli.configure import configured
from fewstep.data.shapes import Shapes
from fewstep.diffusion.samplers import Ode, Sampler
from fewstep.diffusion.solvers import Dpmpp2m, Euler
from fewstep.diffusion.times import Trailing
from fewstep.files import read_json, write_bytes, write_json
from fewstep.metrics.attribute_diversity import AttributeDiversity
from fewstep.metrics.caption_accuracy import CaptionAccuracy
from fewstep.metrics.evaluation import Evaluation
from fewstep.metrics.features import ClassifierFeatures
from fewstep.metrics.frechet import Frechet
from fewstep.metrics.results import Result
from fewstep.models.bundle import DiffusionModel
from fewstep.models.folder import load
from fewstep.models.lora import Lora
from fewstep.report.tables import Table, markdown
from fewstep.run import distil

HOME = Path(__file__).resolve().parent.parent
RESULTS, PAGE = (HOME / "docs" / "results" / f"shapes.{kind}" for kind in ("json", "md"))
TEACHERS = {"one": "shapes_teacher", "two": "runs/shapes_two_teacher"}
"""By tier."""
STUDENTS = (
    *("ct", "cd", "lcm", "lcm_lora", "mbcd", "mbcd_lora", "pcm_lora", "tcd_lora", "scm"),
    *("dmd2_lora", "progressive"),
)
STEPS = (1, 2, 4)
SCALES = (1.0, 2.0, 3.0, 5.0)
NUM = 1000
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
NAMES = {
    "caption_accuracy": "caption_accuracy",
    "frechet": "frechet",
    "attribute_diversity": "diversity",
}
"""What the file calls the measures."""
Line = dict[str, Any]


def evaluation(tier: str, seed: int) -> Evaluation:
    """Of held-out pictures and their captions."""
    return Evaluation.against(
        Shapes(tier=tier).dataset("test"),  # type: ignore[arg-type]
        ClassifierFeatures("shapes_classifier"),
        [CaptionAccuracy(), AttributeDiversity(), Frechet()],
        num=NUM,
        seed=seed,
        split="test",
    )


def ddim(steps: int) -> Sampler:
    """Of the teacher."""
    return Ode(steps, Trailing(), Euler())


def solver_of(result: Result) -> str:
    """How the file names it."""
    return "ddim" if result.solver == "euler" else str(result.solver)


def line_of(result: Result, **facts: Any) -> Line:
    """A line of the file."""
    values = {}
    for kind, name in NAMES.items():
        values[name] = round(result.values[kind], 4) if kind in result.values else None
    found: Line = {**facts, "solver": solver_of(result), "steps": result.steps}
    found |= {"evaluations": result.evaluations, **values}
    assert result.images_per_second is not None
    return found | {"seconds_per_image": round(1 / result.images_per_second, 4)}


def of_teacher(tier: str, seed: int) -> Iterator[Line]:
    """DDIM with 50 and few steps, DPM-Solver++ between, over guidance."""
    model, measures = load(TEACHERS[tier]), evaluation(tier, seed)
    samplers = [ddim(50), *(Ode(n, Trailing(), Dpmpp2m()) for n in (20, 16, 8))]
    samplers += [ddim(n) for n in reversed(STEPS)]
    own = model.guidance.default
    for scale in SCALES if seed == 0 else (own,):
        for sampler in samplers:
            result = measures.of_model("teacher", model, sampler, guidance=scale)
            yield line_of(
                result,
                tier=tier,
                method="teacher",
                adapter=None,
                guidance=scale,
                chosen=scale == own,
                seed=seed,
            )


def of_student(
    name: str, tier: str, seed: int, options: argparse.Namespace, teacher: Line
) -> Iterator[Line]:
    """Trained and measured. teacher: its lines at 2, 4 and 50 steps."""
    data = [f"data.tier={tier}"]
    if options.cache:
        data = ["data=cached", f"data.path={options.cache}"]
    words = [*data, f"trainer.seed={seed}", f"teacher={TEACHERS[tier]}"]
    run, _ = configured(f"shapes_{name}", words)
    adapter = "lora" if isinstance(run.adaptation, Lora) else "full"
    all_at_once = all(run.method.serves(n) for n in STEPS)
    for serves in [STEPS] if all_at_once else [(n,) for n in STEPS]:
        method = run.method if all_at_once else run.method.for_steps(serves[0])
        folder = options.runs / f"{name}-{tier}-{'-'.join(map(str, serves))}-seed{seed}"
        begun = time.perf_counter()
        distil(replaced(run, method=method), folder, progress=True)
        minutes = (time.perf_counter() - begun) / 60
        model = load(str(folder))
        for scale in scales_of(model):
            for n in serves:
                sampler = model.sampler.with_steps(n)
                result = evaluation(tier, seed).of_model(name, model, sampler, guidance=scale)
                yield line_of(
                    result,
                    tier=tier,
                    method=name,
                    adapter=adapter,
                    guidance=model.guidance.default if scale is None else scale,
                    chosen=scale in (None, model.guidance.default),
                    seed=seed,
                    teacher=teacher,
                    minutes=round(minutes, 1),
                )


def scales_of(model: DiffusionModel) -> Sequence[float | None]:
    """The scales that are tried: of one that reads them all, of others their own."""
    return SCALES if model.guidance.kind == "input" else (None,)


def few_of_teacher(lines: Sequence[Line], tier: str, seed: int) -> Line:
    """The teacher's values at 2, 4 and 50 steps of DDIM and its own scale."""
    found = {}
    for line in lines:
        mine = line["chosen"] and is_of(line, "teacher", tier, seed)
        if mine and line["solver"] == "ddim" and line["steps"] in (2, 4, 50):
            found[str(line["steps"])] = {name: line[name] for name in NAMES.values()}
    return found


def is_of(line: Line, name: str, tier: str, seed: int) -> bool:
    """Whether the line is of this row."""
    return bool((line["method"], line["tier"], line["seed"]) == (name, tier, seed))


def table(lines: Sequence[Line]) -> str:
    """Medians over the seeds of what each row would ship, in Markdown."""
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        if line["chosen"]:
            key = (
                *(line["tier"], line["method"], line["adapter"] or ""),
                *(line["solver"], line["steps"]),
            )
            groups.setdefault(key, []).append(line)
    rows = []
    for key, several in groups.items():
        tier, method, adapter, solver, steps = key
        row = [tier, f"`{method}`", adapter, solver, str(steps), str(several[0]["evaluations"])]
        row += [f"{several[0]['guidance']:g}", f"{100 * middle(several, 'caption_accuracy'):.1f}"]
        row += [f"{middle(several, 'frechet'):.1f}", f"{middle(several, 'diversity'):.3f}"]
        row.append(f"{middle(several, 'minutes'):.0f}" if "minutes" in several[0] else "")
        rows.append([*row, f"{1000 * middle(several, 'seconds_per_image'):.0f}", str(len(several))])
    heads = ["tier", "method", "trained", "sampler", "steps", "evaluations", "guidance"]
    heads += ["captions followed, %", "Fréchet distance", "variation of what is free"]
    return markdown(Table([*heads, "minutes", "ms per image", "seeds"], rows, texts=4))


def middle(lines: Sequence[Line], key: str) -> float:
    """The median, of those that have it."""
    return statistics.median(line[key] for line in lines if line[key] is not None)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(("teacher", *STUDENTS)))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--tier", choices=list(TEACHERS), default="one")
    parser.add_argument("--runs", type=Path, default=Path("runs/shapes"), help="of the students")
    parser.add_argument("--cache", type=Path, help="of the tier's data, by its teacher")
    options = parser.parse_args()
    tier: str = options.tier
    wanted, seeds = options.rows.split(","), [int(seed) for seed in options.seeds.split(",")]
    if unknown := set(wanted) - {"teacher", *STUDENTS}:
        parser.error(
            f"no row {', '.join(sorted(unknown))}; there are teacher, {', '.join(STUDENTS)}"
        )
    lines: list[Line] = read_json(RESULTS) if RESULTS.is_file() else []
    for seed in seeds:
        for name in wanted:
            if any(is_of(line, name, tier, seed) for line in lines):
                continue
            few = few_of_teacher(lines, tier, seed)
            if name != "teacher" and not few:
                parser.error(f"seed {seed} has no lines of the teacher yet: --rows teacher")
            if name == "teacher":
                found = of_teacher(tier, seed)
            else:
                found = of_student(name, tier, seed, options, few)
            made = []
            for line in found:
                print(json.dumps(line), flush=True)
                made.append(line)
            lines += made
            write_json(RESULTS, lines)
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    page = f"{head}{BEGIN}\n{table(lines)}\n{END}{rest.partition(END)[2]}"
    write_bytes(PAGE, page.encode())


if __name__ == "__main__":
    main()
