"""What each verb takes and says of itself. Its work stands in the file of its name, which is
imported when the words are understood: `--help` and a mistyped option do not wait for torch.
"""

import importlib
from pathlib import Path
from typing import Any

import typer

from fewstep.cli.tables import print_list
from fewstep.recipes import listed
from fewstep.text import place

MOST_IMAGES = 10_000_000  # they are in memory together


def carry_out(verb: str, options: dict[str, Any], name: str | None = None) -> None:
    """Calls the function of a verb's file, of the same name if no other is given."""
    for option, value in options.items():
        if isinstance(value, Path):
            options[option] = place(value)
    as_json = options.pop("as_json", False)
    carried = getattr(importlib.import_module(f"fewstep.cli.{verb}"), name or verb)
    if not as_json:
        carried(**options)
        return
    with importlib.import_module("fewstep.cli.tables").as_json():
        carried(**options)


def recipes_like(begun: str) -> list[str]:
    """The recipes whose names begin so."""
    return [name for name in listed() if name.startswith(begun)]


def demo(
    words: list[str] | None = typer.Argument(
        None,
        metavar="[digits|shapes] [NAME=VALUE]...",
        help="digits (labels) or shapes (text to image); then as for train: trainer.steps=200",
    ),
    num: int | None = typer.Option(
        None,
        min=20,
        max=MOST_IMAGES,
        help="Samples for each row of the table; 2000 of digits, 200 of shapes if not given.",
    ),
    seed: int = typer.Option(0, help="The seed of the samples."),
    measures: str | None = typer.Option(
        None, help="Which (fewstep inspect measures); all that fit if not given."
    ),
) -> None:
    """Distils a shipped teacher into a student of 1 to 4 evaluations, measures both, writes a
    report.

    Example: fewstep demo shapes
    """
    carry_out("demo", locals())


def train(
    recipe: str = typer.Argument(
        help="A recipe (fewstep inspect recipes), a run.yaml, or the folder of a run, to go on.",
        autocompletion=recipes_like,
    ),
    overrides: list[str] | None = typer.Argument(
        None, help="name=…, method.bins=18, trainer.steps=2000, teacher=runs/x …"
    ),
    restart: bool = typer.Option(False, help="Begin at step 0, whatever the folder holds."),
    options: bool = typer.Option(
        False, "--options", help="Show the run's options with their values, and end."
    ),
) -> None:
    """Trains a teacher or distils a student; an unfinished run goes on where it stopped.

    Example: fewstep train mnist_cd data.path=mnist teacher=runs/mnist_teacher
    """
    carry_out("train", locals())


def plan(
    recipe: str = typer.Argument(
        help="A recipe (fewstep inspect recipes) or a run.yaml.", autocompletion=recipes_like
    ),
    overrides: list[str] | None = typer.Argument(
        None, help="As for train: trainer.batch=64, trainer.precision=bf16 …"
    ),
    shape: str | None = typer.Option(
        None, help="Of an image: channels,height,width. Known for digits, idx (28×28), cifar."
    ),
    classes: int | None = typer.Option(
        None, min=0, help="Of the labels; 0: none. Known for the same."
    ),
    processes: int = typer.Option(
        1, min=1, help="How many share the batch; memory and time are those of each."
    ),
    as_json: bool = typer.Option(False, "--json", help="Prints JSON."),
) -> None:
    """Says what memory, time and disk a run will need; neither its data nor its teacher has to be
    there.

    Example: fewstep plan cifar10_cd_small trainer.batch=64
    """
    carry_out("plan", locals())


def sample(
    model: str = typer.Argument(help="A run's folder, a model's folder, or a shipped model."),
    out: Path = typer.Option(
        help="x.npz (arr_0 images, arr_1 labels, captions), x.png (a grid), or a folder of PNG "
        "files, with captions in its metadata.csv."
    ),
    num: int | None = typer.Option(
        None, min=1, max=MOST_IMAGES, help="How many images; 16, or one for each label or prompt."
    ),
    labels: str | None = typer.Option(
        None, help="Class labels, 3,none,5, where none is no label; balanced classes if not given."
    ),
    prompt: list[str] | None = typer.Option(
        None, help="What a model of captions is to show; once for all images, or once for each."
    ),
    prompts: Path | None = typer.Option(
        None, help="A file of prompts (.txt, .csv, .tsv, .jsonl) or other data with captions."
    ),
    negative: str | None = typer.Option(None, help="What guidance leads away from."),
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
    fading: str | None = typer.Option(
        None,
        help="FULL,NONE: the whole guidance at times up to FULL, none from NONE on; default: the "
        "model's own.",
    ),
    seed: int = typer.Option(0, help="Image i depends on the seed and i alone."),
    batch: int | None = typer.Option(None, min=1, help="Images at a time."),
    device: str = typer.Option("auto", help="cpu, cuda, mps …"),
    dtype: str = typer.Option("fp32", help="fp32, bf16 or fp16."),
    ema: str | None = typer.Option(None, help="One of the run's averages, by its decay."),
    checkpoint: str | None = typer.Option(
        None, help="Of a run: the student as a checkpoint has it: a step, newest or best."
    ),
) -> None:
    """Makes images.

    Example: fewstep sample runs/demo --steps 2 --num 64 --out grid.png
    """
    carry_out("sample", locals())


def compare(
    models: list[str] = typer.Argument(
        help="A run or model each, with how it is sampled: runs/x,steps=4,guidance=3; also "
        "sampler=, ema=, checkpoint= and name=."
    ),
    out: Path = typer.Option(help="x.png: a row for each model."),
    prompt: list[str] | None = typer.Option(
        None, help="What a column shows; once for each column."
    ),
    prompts: Path | None = typer.Option(
        None, help="A file of prompts (.txt, .csv, .tsv, .jsonl) or other data with captions."
    ),
    labels: str | None = typer.Option(None, help="The class of each column, 3,5,none."),
    num: int | None = typer.Option(None, min=1, max=100, help="How many columns; 8, or all."),
    seed: int = typer.Option(0, help="The images of column i are of the same noise."),
    device: str = typer.Option("auto", help="cpu, cuda, mps …"),
    as_json: bool = typer.Option(False, "--json", help="Prints JSON."),
) -> None:
    """Shows several models side by side: the same prompts and noise in every row.

    Example: fewstep compare digits_teacher,steps=20 runs/demo,steps=1 runs/demo,steps=4 --out x.png
    """
    carry_out("compare", locals())


def evaluate(
    what: str = typer.Argument(
        help="A run, a model, or images: a file or folder of data. Of an autoencoder its "
        "reconstructions of the reference."
    ),
    options: list[str] | None = typer.Argument(
        None, help="How pictures are read: size=64 channels=rgb on_bad=skip label=… split=test"
    ),
    reference: str | None = typer.Option(
        None,
        help="What to compare with: digits, shapes, or a file or folder of data. If not given: of "
        "a run the data that it was trained on, else digits.",
    ),
    measures: str | None = typer.Option(
        None,
        help="Which, frechet,diversity (fewstep inspect measures lists them); all that the data "
        "can serve if not given. The first decides which solver is best.",
    ),
    features: str | None = typer.Option(
        None,
        help="A classifier's folder, or efflite0, for images without labels; if not given the "
        "shipped classifier of digits or shapes, else efflite0.",
    ),
    num: int = typer.Option(2000, min=2, max=MOST_IMAGES, help="How many images to sample."),
    steps: int | None = typer.Option(None, min=1, help="Solver steps; else the model's own."),
    evaluations: int | None = typer.Option(
        None, min=1, help="Of a teacher: the best of --solvers with so many network evaluations."
    ),
    solvers: str = typer.Option("euler,heun,dpmpp_2m", help="Those that --evaluations tries."),
    guidance: float | None = typer.Option(None, help="Scale, 1 is none; else the model's own."),
    teacher: str | None = typer.Option(
        None, help="A model, for measures that compare with it on the same noise."
    ),
    seed: int = typer.Option(0, help="The seed of the samples."),
    device: str = typer.Option("auto", help="cpu, cuda, mps …"),
    checkpoint: str | None = typer.Option(
        None, help="Of a run: the student as a checkpoint has it: a step, newest or best."
    ),
    against: Path | None = typer.Option(
        None, help="An earlier result of --out: both are shown if they can be compared."
    ),
    out: Path | None = typer.Option(None, help="Writes the result as JSON."),
    report: Path | None = typer.Option(None, help="Writes the table and the protocol as HTML."),
    as_json: bool = typer.Option(False, "--json", help="Prints JSON."),
) -> None:
    """Measures quality, and says under which protocol.

    Example: fewstep evaluate runs/demo --reference digits --steps 2
    """
    carry_out("evaluate", locals())


def report(
    run: str = typer.Argument(help="The folder of a run."),
    seconds: float = typer.Option(
        60.0, min=0, help="That drawing samples may take; rows that would take longer are left out."
    ),
    num: int | None = typer.Option(
        None,
        min=2,
        max=MOST_IMAGES,
        help="Measures it before, beside its teacher, with so many images for each number of "
        "evaluations, against the run's own data.",
    ),
) -> None:
    """Writes the page of a run again, of a stopped one from its newest checkpoint.

    Example: fewstep report runs/demo --num 1000
    """
    carry_out("report", locals())


def export(
    model: str = typer.Argument(help="A run's folder, a model's folder, or a shipped model."),
    to: str = typer.Option(help="The format: diffusers (a pipeline), lora (an addition alone)."),
    out: Path | None = typer.Option(
        None, help="The folder to write; default: beside the model, named after the format."
    ),
    dtype: str = typer.Option("fp32", help="Of the weights that are written: fp32, bf16, fp16."),
    ema: str | None = typer.Option(None, help="One of the run's averages, by its decay."),
    checkpoint: str | None = typer.Option(
        None, help="Of a run: the student as a checkpoint has it: a step, newest or best."
    ),
    steps: int | None = typer.Option(
        None, min=1, help="Steps that it is exported for; default: those of its own sampler."
    ),
    base: str | None = typer.Option(
        None, help="For the model card: what model hubs call the model that was distilled."
    ),
    licence: str = typer.Option("other", "--license", help="For the model card: its licence."),
) -> None:
    """Writes a model for another library, loads it there and compares images; fails if they differ.

    Example: fewstep export runs/demo --to diffusers
    """
    carry_out("export", locals())


def inspect(
    what: str = typer.Argument(
        help="A run's or model's folder or name; recipes; methods, networks, solvers, data …; the "
        "name of any of these: digits_cd, dmd2, unet, heun, digits; trainer; run."
    ),
    as_json: bool = typer.Option(False, "--json", help="Prints JSON."),
) -> None:
    """Says what a model is, lists what there is, or explains the options of anything by its name.

    Example: fewstep inspect methods
    """
    if what == "recipes" and not as_json:
        print_list(listed())  # without an import of PyTorch
    else:
        carry_out("inspect", {"what": what, "as_json": as_json})


def check(
    what: str = typer.Argument(help="Your file (my_method.py), a module, or a method by its name."),
    method: str | None = typer.Option(None, help="One of several methods in the file."),
    law: list[str] = typer.Option([], help="Only this law; several times for several."),
) -> None:
    """Tries a training method of your own against the laws that every method keeps, and says in
    words what it breaks.

    Example: fewstep check my_method.py
    """
    carry_out("check", locals())


def data_check(
    source: str = typer.Argument(help="digits, or a file or folder of data."),
    overrides: list[str] | None = typer.Argument(
        None, help="limit=1000, fraction=0.1, split=test, size=64, kind=folder …"
    ),
    model: str | None = typer.Option(
        None, help="A model of captions, to count those that it cannot read to their end."
    ),
    sheet: Path | None = typer.Option(None, help="Writes a contact sheet: a .png of 100 pictures."),
    as_json: bool = typer.Option(False, "--json", help="Prints JSON."),
) -> None:
    """Reads all of a data source and says what was found, and which command comes next.

    Example: fewstep data check mnist/ --sheet mnist.png
    """
    carry_out("data", locals(), "check")


def data_cache(
    source: str = typer.Argument(help="digits, or a file or folder of data."),
    overrides: list[str] | None = typer.Argument(
        None, help="As for check: size=512, flip=true …; split is all if not given."
    ),
    out: Path = typer.Option(help="The folder to write; an unfinished one goes on."),
    model: str | None = typer.Option(
        None, help="Whose codec and conditioner encode: a run's folder, a model's, or a name."
    ),
    codec: str | None = typer.Option(None, help="Another model whose codec is meant."),
    conditioner: str | None = typer.Option(None, help="Another model whose conditioner is meant."),
    dtype: str = typer.Option("fp32", help="What is stored: fp32 or fp16."),
    batch: int = typer.Option(16, min=1, help="Pictures or captions at a time."),
    device: str = typer.Option("auto", help="cpu, cuda, mps …"),
) -> None:
    """Encodes pictures and captions once, for trainings that then need neither codec nor text
    encoder (data=cached data.path=OUT).

    Example: fewstep data cache photos size=512 --model runs/teacher --out photos-cache
    """
    carry_out("cache", locals())
