"""Text to image in few steps, measured on drawn shapes: the shipped teacher over guidance and
steps, and its students.

    python benchmarks/shapes.py [--rows teacher,lcm_lora,mbcd_lora] [--seeds 0,1,2] [--steps 4,2]

A student is its recipe shapes_…, trained with the seed; one that serves one number of steps only
is trained for each. --cache trains from a cache, to the same result in less time (`fewstep data
cache shapes --model shapes_teacher --out DIR`). Tier two is of two objects, whose teacher is
trained before (docs/results/shapes.md says how).

All are asked for the same 1,000 captions of held-out pictures, which leave out half of what is to
be seen: caption accuracy over all, the attributes' variation over what was left free, the Fréchet
distance to the held-out pictures, and that to 1,000 images of the teacher with 50 steps. `data`
are 1,000 pictures of the training set with their own captions. Other scales of the teacher's
guidance than its own are tried with seed 0 alone. A finished line of docs/results/shapes.json is
not measured again, and several processes may measure several rows. Behind it
docs/results/shapes.md is written anew.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from trained import ddim, middle, minutes_of, named, write_table

from fewstep.choice import kind_of, replaced
from fewstep.cli.configure import configured
from fewstep.data.captions import one_of_each
from fewstep.data.npz import Npz
from fewstep.data.shapes import Shapes
from fewstep.diffusion.samplers import Ode
from fewstep.diffusion.solvers import Dpmpp2m
from fewstep.diffusion.times import Trailing
from fewstep.files import read_json, write_json
from fewstep.images.files import write_images
from fewstep.metrics.attribute_diversity import AttributeDiversity
from fewstep.metrics.caption_accuracy import CaptionAccuracy
from fewstep.metrics.evaluation import Evaluation
from fewstep.metrics.features import ClassifierFeatures
from fewstep.metrics.frechet import Frechet
from fewstep.metrics.measure import ImageSet
from fewstep.metrics.results import Result
from fewstep.models.folder import load
from fewstep.models.lora import Lora
from fewstep.report.tables import Table, markdown

HOME = Path(__file__).resolve().parent.parent
RESULTS, PAGE = (HOME / "docs" / "results" / f"shapes.{kind}" for kind in ("json", "md"))
TEACHERS = {"one": "shapes_teacher", "two": "runs/shapes_two_teacher"}
"""By tier."""
STUDENTS = (
    *("ct", "cd", "lcm", "lcm_lora", "mbcd", "mbcd_lora", "pcm_lora", "tcd_lora", "scm"),
    *("dmd2_lora", "progressive"),
)
STEPS = (4, 2, 1)
SCALES = (1.0, 2.0, 3.0, 5.0)
NUM = 1000
APART = 100
"""The seed of what the teacher makes to be compared with; no line has it."""
NAMES = {
    "caption_accuracy": "caption_accuracy",
    "frechet": "frechet",
    "attribute_diversity": "diversity",
    "to_teacher": "frechet_to_teacher",
}
"""What the file calls the measures."""
Line = dict[str, Any]


@dataclass(frozen=True)
class ToTeacher(Frechet):
    """The Fréchet distance to what the teacher makes with 50 steps, of other captions and noise."""

    tier: str = "one"
    folder: str = ""
    """Where the teacher's images are kept."""

    def __call__(self, samples: ImageSet, reference: ImageSet) -> float:
        return super().__call__(samples, by_teacher(self.tier, self.folder, samples.extractor))


@functools.cache
def by_teacher(tier: str, folder: str, extractor: Any) -> ImageSet:
    """These images, which are made once for all processes."""
    place = Path(folder) / f"teacher-{tier}.npz"
    if not place.is_file():
        model = load(TEACHERS[tier])
        captions = one_of_each(Shapes(tier=tier).dataset("test"), NUM, APART)  # type: ignore[arg-type]
        images = model.generate(prompts=captions, sampler=ddim(50), seed=APART)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_images(place, images, None)
    images = Npz(path=str(place)).dataset("all").floats()
    return ImageSet({"image": images}, extractor)


@functools.cache
def evaluation(tier: str, seed: int, folder: Path) -> Evaluation:
    """Of held-out pictures and their captions."""
    return Evaluation.against(
        Shapes(tier=tier).dataset("test"),  # type: ignore[arg-type]
        ClassifierFeatures("shapes_classifier"),
        [CaptionAccuracy(), AttributeDiversity(), Frechet(), ToTeacher(tier, str(folder))],
        num=NUM,
        seed=seed,
        split="test",
    )


def name_of(solver: str) -> str:
    """How the file names it."""
    return "ddim" if solver == "euler" else solver


def line_of(result: Result, **facts: Any) -> Line:
    """A line of the file."""
    values = named(result.values, NAMES)
    found: Line = {**facts, "solver": name_of(str(result.solver)), "steps": result.steps}
    found |= {"evaluations": result.evaluations, **values}
    assert result.images_per_second is not None
    return found | {"seconds_per_image": round(1 / result.images_per_second, 4)}


def of_data(
    tier: str, seed: int, options: argparse.Namespace, lines: Sequence[Line]
) -> Iterator[Line]:
    """Pictures of the training set. lines: what is measured."""
    if lines:
        return
    dataset = Shapes(tier=tier).dataset("train")  # type: ignore[arg-type]
    rows = dataset.rows(torch.arange(NUM * seed, NUM * (seed + 1)))
    columns = {"image": rows["image"].float() / 255, "caption": rows["caption"]}
    values, _ = evaluation(tier, seed, options.runs).measured(columns)
    facts: Line = {"tier": tier, "method": "data", "adapter": None, "guidance": None}
    facts |= {"chosen": True, "seed": seed, "solver": None, "steps": None, "evaluations": None}
    yield facts | named(values, NAMES) | {"seconds_per_image": None}


def of_teacher(
    tier: str, seed: int, options: argparse.Namespace, lines: Sequence[Line]
) -> Iterator[Line]:
    """DDIM with 50 and few steps, DPM-Solver++ between, over guidance. lines: what is measured."""
    model, measures = load(TEACHERS[tier]), evaluation(tier, seed, options.runs)
    samplers = [ddim(50), *(Ode(n, Trailing(), Dpmpp2m()) for n in (20, 16, 8))]
    samplers += [ddim(n) for n in STEPS]
    own = model.guidance.default
    done = {(line["guidance"], line["solver"], line["steps"]) for line in lines}
    for scale in SCALES if seed == 0 else (own,):
        for sampler in samplers:
            if (scale, name_of(kind_of(type(sampler.solver))), sampler.steps) in done:
                continue
            result = measures.of_model("teacher", model, sampler, guidance=scale)
            facts: Line = {"tier": tier, "method": "teacher", "adapter": None, "guidance": scale}
            yield line_of(result, **facts, chosen=scale == own, seed=seed)


def of_student(
    name: str, tier: str, seed: int, options: argparse.Namespace, lines: Sequence[Line]
) -> Iterator[Line]:
    """Trained and measured. lines: what is measured, of the teacher too."""
    data = [f"data.tier={tier}"]
    if options.cache:
        data = ["data=cached", f"data.path={options.cache}"]
    words = [*data, f"trainer.seed={seed}", f"teacher={TEACHERS[tier]}"]
    run, _ = configured(f"shapes_{name}", words)
    adapter = "lora" if isinstance(run.adaptation, Lora) else "full"
    done = {(line["guidance"], line["steps"]) for line in lines if line["method"] == name}
    learned = run.method.towards(load(TEACHERS[tier])).scales
    scales = SCALES if learned.embed else (learned.low,)
    all_at_once = all(run.method.serves(n) for n in options.steps)
    for serves in [options.steps] if all_at_once else [(n,) for n in options.steps]:
        if done.issuperset((scale, n) for scale in scales for n in serves):
            continue
        method = run.method if all_at_once else run.method.for_steps(serves[0])
        folder = options.runs / f"{name}-{tier}-{'-'.join(map(str, serves))}-seed{seed}"
        minutes = minutes_of(replaced(run, method=method), folder)
        model = load(str(folder))
        own = model.guidance.default if learned.embed else learned.low
        for scale in scales:
            for n in serves:
                if (scale, n) in done:
                    continue
                sampler = model.sampler.with_steps(n)
                asked = scale if learned.embed else None
                measures = evaluation(tier, seed, options.runs)
                result = measures.of_model(name, model, sampler, guidance=asked)
                facts: Line = {"tier": tier, "method": name, "adapter": adapter, "guidance": scale}
                facts |= {"chosen": scale == own, "seed": seed}
                facts |= {"teacher": few_of_teacher(lines), "minutes": minutes}
                yield line_of(result, **facts)


def few_of_teacher(lines: Sequence[Line]) -> Line:
    """The teacher's values at 2, 4 and 50 steps of DDIM and its own scale, of the lines of one
    seed.
    """
    found = {}
    for line in lines:
        few = line["solver"] == "ddim" and line["steps"] in (2, 4, 50)
        if line["method"] == "teacher" and line["chosen"] and few:
            found[str(line["steps"])] = {name: line.get(name) for name in NAMES.values()}
    return found


def finished() -> list[Line]:
    """The lines of the file."""
    return read_json(RESULTS) if RESULTS.is_file() else []


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
        tier, method, adapter, solver, _ = key
        row = [tier, f"`{method}`", adapter, solver or "", middle(several, "steps", 0)]
        row += [middle(several, "evaluations", 0), middle(several, "guidance", 0)]
        row += [middle(several, "caption_accuracy", 1, times=100)]
        row += [middle(several, "frechet", 1), middle(several, "frechet_to_teacher", 1)]
        row += [middle(several, "diversity", 3)]
        row += [middle(several, "minutes", 0), middle(several, "seconds_per_image", 0, times=1000)]
        rows.append([*row, str(len(several))])
    heads = ["tier", "method", "trained", "sampler", "steps", "evaluations", "guidance"]
    heads += ["captions followed, %", "Fréchet distance", "to the teacher's"]
    heads += ["variation of what is free"]
    return markdown(Table([*heads, "minutes", "ms per image", "seeds"], rows, texts=4))


def numbers(text: str) -> tuple[int, ...]:
    """4,2,1 as numbers."""
    return tuple(int(number) for number in text.split(","))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(("data", "teacher", *STUDENTS)))
    parser.add_argument("--seeds", type=numbers, default=(0, 1, 2))
    parser.add_argument("--steps", type=numbers, default=STEPS, help="of the students")
    parser.add_argument("--tier", choices=list(TEACHERS), default="one")
    parser.add_argument("--runs", type=Path, default=Path("runs/shapes"), help="of the students")
    parser.add_argument("--cache", type=Path, help="of the tier's data, by its teacher")
    options = parser.parse_args()
    tier: str = options.tier
    wanted = options.rows.split(",")
    if unknown := set(wanted) - {"data", "teacher", *STUDENTS}:
        parser.error(
            f"no row {', '.join(sorted(unknown))}; there are data, teacher, {', '.join(STUDENTS)}"
        )
    for seed in options.seeds:
        for name in wanted:
            lines = [line for line in finished() if (line["tier"], line["seed"]) == (tier, seed)]
            if name in ("data", "teacher"):
                mine = [one for one in lines if one["method"] == name]
                found = (of_data if name == "data" else of_teacher)(tier, seed, options, mine)
            elif len(few_of_teacher(lines)) == 3:
                found = of_student(name, tier, seed, options, lines)
            else:
                parser.error(f"seed {seed} has no lines of the teacher yet: --rows teacher")
            for line in found:
                print(json.dumps(line), flush=True)
                write_json(RESULTS, [*finished(), line])  # others may have written meanwhile
    write_table(PAGE, table(finished()))


if __name__ == "__main__":
    main()
