"""`fewstep plan`."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.choice import kind_of, replaced
from fewstep.cli.configure import configured
from fewstep.cli.tables import gathered, print_facts, print_table
from fewstep.data.caching import part_facts
from fewstep.data.dataset import Held, MadeBy
from fewstep.learning.averaging import share_of_start
from fewstep.learning.dropout import seeded
from fewstep.learning.roles import networks
from fewstep.models import sd15
from fewstep.models.bundle import DiffusionModel
from fewstep.models.named import shipped
from fewstep.models.size import MOST_NUMBERS, parameters_in
from fewstep.models.source import Fresh, ModelSource, Saved
from fewstep.models.space import (
    Classes,
    Column,
    Image,
    Moments,
    Space,
    Text,
    Vectors,
    data_space,
    image_space,
)
from fewstep.parts.autoencoder import Autoencoder
from fewstep.parts.clip import Clip
from fewstep.recipes import listed
from fewstep.run import Prepared, Run
from fewstep.text import counted, duration, tell
from fewstep.training import health
from fewstep.training.config import TrainerConfig, pick_device
from fewstep.training.doubts import doubts, shortest
from fewstep.training.plan import Plan, planned, planned_precision
from fewstep.training.start import check_base
from fewstep.training.threads import settle, threads_kept

ROWS = 64  # that stand for the data
LARGE = 50_000_000  # parameters of a network of which a step takes a CPU many seconds


def plan(
    recipe: str, overrides: list[str] | None, shape: str | None, classes: int | None, processes: int
) -> None:
    """Prints the plan of a run. ValueError where nobody knows the shape of its data."""
    run, _ = configured(recipe, overrides or [])
    show(run, plan_of(run, outside(run, shape, classes), processes))


def outside(run: Run, shape: str | None, classes: int | None) -> Space:
    """What a run's data hold. shape, classes: of the pictures, in place of what is known of them.
    ValueError where nobody says them.
    """
    known = run.data.foreseen()
    path = getattr(run.data, "path", "")
    if known is None and shape is None and path and Path(path).exists():
        known = run.data.dataset().space
    if shape is None and known is None:
        raise ValueError(
            f"the shape of {kind_of(type(run.data))} data is not known before it is read: give "
            "--shape 3,64,64 and --classes"
        )
    columns = dict(known.columns) if known is not None else {}
    if shape is not None:
        labels = 0 if known is None else known.classes
        columns = dict(image_space(_sides(shape), labels).columns)
    if classes is not None:
        columns.pop("label", None)
        columns |= {"label": Classes(classes)} if classes else {}
    return data_space(columns)


def _sides(shape: str) -> tuple[int, ...]:
    """The words of --shape as numbers."""
    words = [word.strip() for word in shape.split(",")]
    if len(words) != 3 or not all(re.fullmatch("0*[1-9][0-9]{0,8}", word) for word in words):
        raise ValueError(f"--shape {shape!r} must be channels,height,width: for example 3,32,32")
    sides = tuple(map(int, words))
    if math.prod(sides) > MOST_NUMBERS:
        raise ValueError(f"--shape {shape}: no sample has more than {MOST_NUMBERS:,} numbers")
    return sides


def plan_of(run: Run, space: Space, processes: int = 1) -> Plan:
    """The plan of a run on such data."""
    ready = rehearsal(run, space)
    most = max(map(parameters_in, networks(ready.nets).values()))
    if most > LARGE and ready.trainer.device.type == "cpu":
        millions = round(most / 1e6)
        tell(f"trying steps of a network of {millions:,} M parameters: minutes, on a CPU")
    rows = 0
    if run.data.split == "train":
        rows = health.HELD_OUT
    elif isinstance(run.teacher, Saved):
        rows = health.IMAGES
    with threads_kept():
        if told := settle(ready.trainer):
            tell(told)
        return planned(ready.trainer, processes, rows, beside(ready))


def rehearsal(run: Run, space: Space) -> Prepared:
    """A run that can begin without its data and its teacher: on made-up rows, in the arithmetic in
    which it is planned, nothing compiled.
    """
    check_base(run.adaptation, run.start or run.teacher)
    # whoever reads no captions ignores them
    space = Space(space.shape, {**space.columns, "caption": Text()})
    model = _model(run.teacher, space)
    begin = model if run.start is None else _model(run.start, space)
    with seeded(0, torch.device("cpu")):
        values = {name: _made_up(column) for name, column in space.columns.items()}
    dataset = Held(values, space.columns, torch.arange(ROWS), flip=run.data.flip)
    if isinstance(model, DiffusionModel) and space.columns.keys() & {"moments", "embedding"}:
        facts = {"codec": part_facts(model.codec), "conditioner": part_facts(model.conditioner)}
        embedding = values.get("embedding")
        dataset.made_by = MadeBy(facts, None if embedding is None else embedding[:1])
    precision = planned_precision(run.trainer)
    tried = replaced(run, trainer=replaced(run.trainer, compile=False, precision=precision))
    return tried.prepared(dataset, model=model, begin=begin)


def _made_up(column: Column) -> Any:
    """Rows of a column."""
    if isinstance(column, Text):
        return [f"the picture of number {i}" for i in range(ROWS)]
    if isinstance(column, Classes):
        return torch.randint(column.num, (ROWS,))
    assert isinstance(column, Image | Moments | Vectors)
    if isinstance(column, Image):
        return torch.randint(256, (ROWS, *column.shape), dtype=torch.uint8)
    return torch.randn(ROWS, *column.shape)


def beside(ready: Prepared) -> dict[str, list[nn.Module]]:
    """What a run keeps beside the networks of its method, by role."""
    return {
        "encoders": [ready.model.codec, ready.model.conditioner],
        "as loaded": [ready.model.denoiser, ready.begin.denoiser],
    }


def _model(source: ModelSource, data: Space) -> Any:
    """The model of a source; one that is not there yet as its recipe or run file would begin it.
    Stable Diffusion 1.5 is never downloaded for that.
    """
    if isinstance(source, Saved) and source.path == sd15.NAME:
        source = sd15.fresh()
        if not data.shape:  # prompts alone
            side = sd15.AUTOENCODER["sample_size"]
            data = data_space({**data.columns, "image": Image((3, side, side))})
    if isinstance(source, Saved) and source.path not in shipped():
        path = Path(source.path)
        made = any((folder / "model.json").is_file() for folder in (path, path / "student"))
        recipe = str(path / "run.yaml") if (path / "run.yaml").is_file() else path.name
        if not made and (recipe != path.name or (recipe in listed() and not path.exists())):
            run, _ = configured(recipe, [])
            return _model(run.start or run.teacher, data)
    return (with_new_parts(source, data) if isinstance(source, Fresh) else source).load(data, 0)


def with_new_parts(source: Fresh, data: Space) -> Fresh:
    """With new ones in the place of codec and conditioner of runs that are not there yet."""
    if source.codec_from is not None and not Path(source.codec_from).exists():
        part = _model(Saved(source.codec_from), data)
        assert isinstance(part, Autoencoder)
        source = replaced(source, codec_from=None, codec=part.network.spec)
    if source.conditioner_from is not None and not Path(source.conditioner_from).exists():
        part = _model(Saved(source.conditioner_from), data)
        assert isinstance(part, Clip)
        text = replaced(part.network.text.spec, tokenizer=0)
        source = replaced(source, conditioner_from=None, conditioner=text)
    return source


def show(run: Run, plan: Plan) -> None:
    """Prints a plan."""
    roles = [(role, "always", size) for role, size in plan.held.items()]
    roles += [(role, "at times", size) for role, size in plan.passing.items()]
    print_table(
        ("role", "when", "MiB"),
        [(r, w, f"{_mib(size)}") for r, w, size in [*roles, ("peak", "", plan.peak)]],
    )
    learn = [f"{count:,} parameters of {name}" for name, count in plan.trained.items()]
    trainer, passes = run.trainer, math.ceil(plan.share / plan.rows)
    threads = plan.threads
    gpu = pick_device(trainer.device).type == "cuda"
    where = torch.cuda.get_device_name() if gpu else f"a CPU with {counted(threads, 'thread')}"
    phases = (*run.method.phases(trainer.steps), trainer.steps)
    arithmetic = str(plan.precision)
    if plan.precision != trainer.precision:
        arithmetic += f" in the place of {trainer.precision}"
    facts = {
        "trained": ", ".join(learn),
        "batch": f"{plan.share} rows, in {passes} pass{'es' * (passes > 1)} of {plan.rows}",
        "time": (
            f"{plan.step:.3g} s a step, {duration(plan.step * trainer.steps)} for "
            f"{trainer.steps:,} steps; measured on {plan.tried} rows in {arithmetic} on {where}"
        ),
        "disk": (
            f"{_checkpoints(trainer)} checkpoints of {_mib(plan.checkpoint)} MiB "
            f"(one of them being written), student {_mib(plan.student)} MiB"
        ),
        "averages": f"{', '.join(_shares(trainer, shortest(phases)))} first weights at the end",
    }
    print_facts(facts)
    found = doubts(trainer, phases)
    if not gathered({"plan": dataclasses.asdict(plan), "warnings": list(found)}):
        for doubt in found:
            print(f"warning: {doubt}")


def _checkpoints(config: TrainerConfig) -> int:
    """How many there are at most, with the one that is being written."""
    milestones = config.steps // config.keep_every if config.keep_every else 0
    return max(2, config.keep) + 1 + milestones + bool(config.keep_best)


def _shares(config: TrainerConfig, updates: int) -> list[str]:
    """What is left of the first weights in each average behind that many updates."""
    found = []
    for decay in config.ema:
        found.append(f"{decay:g} with {share_of_start(decay, updates, config.ema_warmup):.1%}")
    return found


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f}"
