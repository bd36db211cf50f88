"""Models by name or folder, and those of runs that have not ended, from their checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fewstep.models import folder as folders
from fewstep.models.bundle import DiffusionModel
from fewstep.models.named import found
from fewstep.report.comparison import SECONDS
from fewstep.report.of_run import measure, page_of
from fewstep.run import Run, card_of
from fewstep.text import place, tell
from fewstep.training.checkpoint import Checkpoints
from fewstep.training.students import student
from fewstep.yaml import read_yaml

NEWEST, BEST = "newest", "best"


def load(
    source: str | Path,
    ema: str | None = None,
    checkpoint: str | int | None = None,
    say: Callable[[str], None] = tell,
) -> DiffusionModel:
    """A model: the name of a shipped one, a run's folder, a model's folder, or one of a family of
    others (a folder, a file, a name on the hub). Of a run that has not ended it is the student as
    the newest checkpoint has it, which `say` is told.

    ema: one of the run's averages, by its decay. checkpoint: a step, newest or best
    (trainer.keep_best) of a run's checkpoints, also of one that has ended.

    Raises FileNotFoundError (with the shipped names) or ValueError.
    """
    folder = found(source)
    a_run = (folder / "run.yaml").is_file()
    if checkpoint is None and (not a_run or (folder / "student" / "model.json").is_file()):
        return folders.load(source, ema)
    if not a_run:
        raise ValueError(f"{source} is no run, so it has no checkpoints")
    step = _step(folder, NEWEST if checkpoint is None else checkpoint)
    return _at(folder, step, ema, say)


def write_page(
    folder: str | Path,
    num: int | None = None,
    seconds: float = SECONDS,
    say: Callable[[str], None] = tell,
) -> Path:
    """Writes report.html of a run, as `fewstep report` does; of a stopped one from its newest
    checkpoint. num: images with which it and its teacher are measured before. seconds: that drawing
    samples may take.

    Raises FileNotFoundError where the folder holds no run, ValueError where there is nothing to
    measure.
    """
    home = place(folder)
    if not (home / "run.yaml").is_file():
        raise FileNotFoundError(f"{folder} is no run: it holds no run.yaml")
    run = _run_of(home)
    model = load(home, say=say) if issubclass(run.method.trains, DiffusionModel) else None
    if num is not None:
        if model is None:
            raise ValueError(f"{folder} makes no images that could be measured")
        measure(run, home, model, num, say)
    return page_of(run, home, model, seconds, say)


def _run_of(folder: Path) -> Run:
    plain = read_yaml(folder / "run.yaml")
    plain.pop("plugins", None)
    return Run.parse(plain)


def _step(folder: Path, wanted: str | int) -> int:
    """The step of the checkpoint that is meant. ValueError or FileNotFoundError for none."""
    checkpoints = Checkpoints(folder / "checkpoints", writes=False)
    steps = checkpoints.steps()
    if not steps:
        raise FileNotFoundError(f"the run {folder} has no checkpoint yet: train it further")
    if wanted == BEST:
        best = checkpoints.best()
        if best is None:
            raise ValueError(f"{folder}: trainer.keep_best was not set, so none is the best")
        return best
    if wanted == NEWEST:
        for step in reversed(steps):
            if checkpoints.damage(step) is None:
                return step
        raise ValueError(f"no checkpoint of {folder} is whole")
    if str(wanted) not in map(str, steps):
        there = ", ".join(map(str, steps))
        raise ValueError(f"{folder} has no checkpoint {wanted}; it has: {there}, newest, best")
    if damage := checkpoints.damage(int(wanted)):
        raise ValueError(f"the checkpoint {wanted} of {folder} is damaged: {damage}")
    return int(wanted)


def _at(folder: Path, step: int, ema: str | None, say: Callable[[str], None]) -> DiffusionModel:
    """The student of a run behind that step."""
    run = _run_of(folder)
    ready = run.prepared(folder=folder)
    if not isinstance(ready.model, DiffusionModel):
        raise ValueError(f"{folder} trains no model that makes images")
    content = Checkpoints(folder / "checkpoints", writes=False).load(step)
    ready.trainer.check(content.facts)
    ready.trainer.state.load(content.tensors)
    name = ready.trainer.state.roles.exports[0]
    made: DiffusionModel = student(ready.trainer, ready.model, name, card_of(run, ready), step)
    say(f"{folder} behind step {step} of {run.trainer.steps}")
    return made if ema is None else _average(made, ema, folder)


def _average(model: DiffusionModel, decay: str, folder: Path) -> DiffusionModel:
    """The model with another of its averages. ValueError where it has none of that decay."""
    own = str(model.card["ema"])
    if decay == own:
        return model
    if decay not in model.variants:
        there = ", ".join([own, *model.variants])
        raise ValueError(f"{folder} has no weights {decay!r}; it has: {there}")
    model.denoiser.network.load_state_dict(dict(model.variants[decay]))
    return model
