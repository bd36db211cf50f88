"""Text to image of real captioned pictures: the recipes emoji_… from nothing, measured and drawn.

    python benchmarks/emoji.py --data FOLDER [--seed 0] [--runs runs]

Trains the autoencoder, the text encoder, the teacher and its students one after the other, in
folders of --runs named like the recipes; what is trained already is read. Then 1,000 samples of
each are measured against the pictures that they learned from: the share whose nearest picture has
the caption that was asked for, the Fréchet distance in the features of the text encoder's picture
tower, and, of captions that leave the skin tone out, how evenly the tones are chosen. Writes
docs/results/emoji.json, the table in emoji.md and the grid emoji.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from trained import ddim, minutes_of, named, write_table

from fewstep.cli.configure import configured
from fewstep.files import write_bytes, write_json
from fewstep.images.grid import png
from fewstep.images.sheet import sheet
from fewstep.metrics.clip_features import ClipFeatures
from fewstep.metrics.evaluation import Evaluation
from fewstep.metrics.frechet import Frechet
from fewstep.metrics.nearest_caption import NearestCaption
from fewstep.metrics.unsaid_variation import UnsaidVariation
from fewstep.models.bundle import DiffusionModel
from fewstep.models.folder import load
from fewstep.models.request import Request
from fewstep.report.tables import Table, markdown
from fewstep.run import Run

HOME = Path(__file__).resolve().parent.parent
RESULTS, PAGE, GRID = (HOME / "docs" / "results" / f"emoji.{end}" for end in ("json", "md", "png"))
PARTS = {"vae": "teacher.codec_from", "clip": "teacher.conditioner_from"}
STUDENTS = ("lcm_lora", "mbcd_lora")
STEPS = (4, 2, 1)
NUM = 1000
NAMES = {
    "nearest_caption": "nearest_caption",
    "frechet": "frechet",
    "unsaid_variation": "diversity",
}
"""What the file calls the measures."""
PROMPTS = (
    *("grinning face with smiling eyes", "dog face", "red apple", "rocket"),
    *("waving hand sign", "waving hand sign", "waving hand sign, dark skin tone", "snowman"),
)
DRAWN = (("teacher", 50), ("teacher", 4), ("lcm_lora", 4), ("lcm_lora", 2), ("mbcd_lora", 4))
Line = dict[str, Any]


def recipe(name: str, options: argparse.Namespace) -> Run:
    """With the data, the seed and the folders of the parts it needs."""
    words = [f"data.path={options.data}", f"trainer.seed={options.seed}"]
    if name == "teacher":
        words += [f"{key}={options.runs / f'emoji_{part}'}" for part, key in PARTS.items()]
    if name in STUDENTS:
        words.append(f"teacher={options.runs / 'emoji_teacher'}")
    return configured(f"emoji_{name}", words)[0]


def samplers(name: str, run: Run, model: DiffusionModel) -> Iterator[Any]:
    """The teacher's are DDIM; a student's own, with the numbers of steps that it serves."""
    if name == "teacher":
        for steps in (50, *STEPS):
            yield ddim(steps)
        return
    for steps in STEPS:
        if run.method.serves(steps):
            yield model.sampler.with_steps(steps)


def measured(options: argparse.Namespace, minutes: dict[str, float]) -> Iterator[Line]:
    """A line for each model and number of steps."""
    runs = {name: recipe(name, options) for name in ("teacher", *STUDENTS)}
    evaluation = Evaluation.against(
        runs["teacher"].data.dataset("train"),
        ClipFeatures(str(options.runs / "emoji_clip")),
        [NearestCaption(), Frechet(), UnsaidVariation()],
        num=NUM,
        seed=options.seed,
        split="train",
    )
    for name, run in runs.items():
        model = load(str(options.runs / f"emoji_{name}"))
        for sampler in samplers(name, run, model):
            result = evaluation.of_model(name, model, sampler)
            assert result.images_per_second is not None
            line: Line = {"method": name, "steps": result.steps, "evaluations": result.evaluations}
            line["guidance"] = result.protocol.guidance
            line |= named(result.values, NAMES)
            seconds = round(1 / result.images_per_second, 4)
            yield line | {
                "seed": options.seed,
                "minutes": minutes[name],
                "seconds_per_image": seconds,
            }


def table(lines: list[Line], minutes: dict[str, float]) -> str:
    """In Markdown."""
    heads = ["model", "steps", "evaluations", "guidance", "nearest picture has the caption, %"]
    heads += ["Fréchet distance", "variation of what is unsaid", "ms per image"]
    rows = []
    for line in lines:
        row = [f"`{line['method']}`", str(line["steps"]), str(line["evaluations"])]
        row += [f"{line['guidance']:g}", f"{100 * line['nearest_caption']:.1f}"]
        row += [f"{line['frechet']:.1f}", f"{line['diversity']:.3f}"]
        rows.append([*row, f"{1000 * line['seconds_per_image']:.0f}"])
    told = ", ".join(f"`{name}` {some:.0f}" for name, some in minutes.items())
    whole = f"Minutes of training: {told}; {sum(minutes.values()):.0f} in all."
    return f"{markdown(Table(heads, rows))}\n\n{whole}"


def grid(options: argparse.Namespace) -> bytes:
    """The same prompts and noise through every model."""
    rows, beside = [], []
    for name, steps in DRAWN:
        model = load(str(options.runs / f"emoji_{name}"))
        asked = {"caption": list(PROMPTS)}
        answer = model.answer(Request(asked, steps=steps, seed=options.seed))
        rows.append(answer.images())
        beside.append(f"{name}\n{steps} steps, {answer.evaluations} evaluations")
    whole = sheet(rows, beside, PROMPTS)
    return png(whole.quantize(256, dither=Image.Dither.NONE))  # less than half of the bytes


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="pictures and a metadata.csv")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    minutes = {}
    for name in (*PARTS, "teacher", *STUDENTS):
        minutes[name] = minutes_of(recipe(name, options), options.runs / f"emoji_{name}")
    lines = []
    for line in measured(options, minutes):
        print(json.dumps(line), flush=True)
        lines.append(line)
    write_json(RESULTS, lines)
    write_table(PAGE, table(lines, minutes))
    write_bytes(GRID, grid(options))


if __name__ == "__main__":
    main()
