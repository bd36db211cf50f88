"""`Run`: what one training run is made of, and `distil`, which carries it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fewstep.choice import Choice, Share, kind_of
from fewstep.data.dataset import Dataset
from fewstep.data.labels import empty_classes
from fewstep.data.source import Source
from fewstep.data.stream import Stream
from fewstep.errors import RefusedError, option_errors
from fewstep.export.schedules import unsaid
from fewstep.files import check_utf8
from fewstep.learning.dropout import seeded
from fewstep.learning.method import Method
from fewstep.metrics import classifier  # noqa: F401  # a kind of method, as in parts
from fewstep.models.adapters import Adaptation, FullCopy
from fewstep.models.bundle import DiffusionModel
from fewstep.models.source import Fresh, ModelSource, Saved
from fewstep.parts import autoencoder, clip  # noqa: F401
from fewstep.text import place as placed
from fewstep.text import tell
from fewstep.training.checkpoint import Checkpoints
from fewstep.training.config import TrainerConfig
from fewstep.training.first_lines import first_lines
from fewstep.training.gallery import Gallery
from fewstep.training.health import Health, verdict
from fewstep.training.log import read_log
from fewstep.training.processes import World, together
from fewstep.training.progress import looked_at, training_progress
from fewstep.training.run_folder import RunFolder
from fewstep.training.seen import Observer
from fewstep.training.signals import Signals
from fewstep.training.start import (
    check_base,
    check_nameable,
    check_not_distilled,
    content,
    held_out,
    lacking,
    otherwise_encoded,
    renewed,
    unlike,
    with_examples,
)
from fewstep.training.students import save_students
from fewstep.training.trackers import check_trackers, trackers
from fewstep.training.trainer import Trainer

PLACES = {"data": ("path", "kind"), "teacher": ("path",), "start": ("path",)}
"""Options of a run, by its part, that say where something lies; what lies there must be the same.
"""
MAY_CHANGE = PLACES | {
    "trainer": TrainerConfig.may_change,
    "data": (*Source.may_change, *PLACES["data"]),
}
"""Options of a run, by its part, that a run that goes on may have changed."""


@dataclass(frozen=True)
class Run(Choice):
    """One training run: `method` on `data`, from `teacher`."""

    data: Source
    """What is trained on."""
    method: Method
    """How the student is trained."""
    teacher: ModelSource = field(default_factory=Fresh)
    """A saved model (name or folder), or a fresh network for methods that train one."""
    start: ModelSource | None = None
    """Another model, whose weights the student begins with."""
    adaptation: Adaptation = field(default_factory=FullCopy)
    """How the networks of the method are made from the teacher: full_copy has all weights anew."""
    dropout: Share | None = None
    """Dropout of the networks that the method makes; the teacher's own if not given."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """The loop: steps, batch, optimizer, averages, precision, checkpoints."""

    def prepared(
        self,
        dataset: Dataset | None = None,
        *,
        model: Any = None,
        begin: Any = None,
        folder: Path | None = None,
        world: World | None = None,
    ) -> Prepared:
        """Everything that trains, put together.

        dataset, model, begin: in place of what `data`, `teacher` and `start` name. folder: where
        the trainer keeps log and checkpoints; None for nowhere. Raises ValueError and OSError for
        data or models that cannot be read or do not fit each other.
        """
        test = None
        if dataset is None:
            everything = self.data.read(None if folder is None else folder / "index")
            dataset = self.data.choose(everything)
            if self.trainer.health_every:
                test = held_out(self.data, everything)
        seed = self.trainer.seed
        if reason := lacking(self.method, dataset):
            raise ValueError(reason)
        if model is None:
            model = self.teacher.load_for(dataset, seed)
        if isinstance(model, DiffusionModel):
            if reason := otherwise_encoded(dataset, model):
                raise ValueError(reason)
            model = with_examples(model, dataset)
        if begin is None:
            begin = model if self.start is None else self.start.load_for(dataset, seed)
        method = self._method_for(model, begin)
        with seeded(seed, torch.device("cpu")):  # new heads
            clone = self.adaptation.clones(begin.denoiser, seed, self.dropout)
            nets = method.build_nets(model, clone)
        batch = self.trainer.batch
        share = (world or World()).rows(batch)
        stream = Stream(
            dataset,
            model.codec,
            model.conditioner,
            seed,
            batch,
            model.shape,
            self.data.workers,
            share,
        )
        contents = {} if folder is None else self._contents(model, begin)
        trainer = Trainer(method, nets, stream, self.trainer, folder, world, contents)
        return Prepared(model, nets, stream, trainer, test, begin)

    def _method_for(self, model: Any, begin: Any) -> Method:
        """The method for these models. ValueError where they do not fit it or each other."""
        if not isinstance(model, self.method.trains):
            kind = kind_of(type(self.method))
            raise ValueError(f"{kind} does not train the model of teacher={self.teacher.dump()}")
        if not isinstance(model, DiffusionModel):
            if not isinstance(self.adaptation, FullCopy):
                chosen = kind_of(type(self.adaptation))
                raise ValueError(f"{kind_of(type(self.method))} trains all weights: no {chosen}")
            return self.method
        if reason := unlike(begin.denoiser, model.denoiser):
            raise ValueError(f"start: {reason}")
        if self.method.fine_tunes:
            check_not_distilled(begin)
        return self.method.towards(model)

    def _contents(self, model: Any, begin: Any) -> dict[str, Any]:
        """What the models are that the run names; new ones are those of the seed."""
        found = {}
        for name, source, one in (("teacher", self.teacher, model), ("start", self.start, begin)):
            if isinstance(one, DiffusionModel) and source is not None and source.named:
                found[name] = content(one)
        return found


class Prepared(NamedTuple):
    """A run that can begin. held_out: images that it never trains on; None where there are none,
    or nobody asks. begin: the model whose weights the student begins with.
    """

    model: Any
    nets: Any
    stream: Stream
    trainer: Trainer
    held_out: Dataset | None
    begin: Any


@dataclass(frozen=True)
class Distilled:
    """What a run has made. models: by the name of the network, of which `student` is the first.
    already: it was finished before. numbers: the last line of its log.
    """

    folder: Path
    models: dict[str, Any]
    already: bool
    numbers: dict[str, float]
    health: str

    @property
    def student(self) -> Any:
        """The model that the run is about."""
        return self.models["student"]


def distil(
    run: Run,
    folder: Path | str,
    *,
    restart: bool = False,
    observers: Sequence[Observer] = (),
    progress: bool | None = None,
    say: Callable[[str], None] = tell,
) -> Distilled:
    """Carries out a run in its folder; an unfinished one goes on, a finished one is read.

    observers: look at every step, behind log and checkpoint. progress: as of `training_progress`:
    where nobody says, a bar on a terminal and in a notebook. Raises RefusedError where the folder
    holds a run with another configuration, or is in use; ValueError and OSError for options, data
    or models that are wrong or cannot be read; DivergedError.
    """
    run, home = checked(run), placed(folder)
    check_utf8(home)
    more = run.trainer.stop_signals
    with together(run.trainer.timeout) as world, Signals(more, waits=False):
        place = RunFolder(home, world, lambda old: renewed(run, old))
        with place.locked():
            finished, moved, longer = False, "", 0
            if not restart:
                finished = world.on_leader(lambda: _finished(run, place))
                moved, longer = world.on_leader(lambda: place.changed(run.dump(), PLACES))
            if finished and not moved:
                return _read(run, home)
            ready = run.prepared(folder=home, world=world)
            if isinstance(ready.begin, DiffusionModel):
                check_nameable(ready.begin.denoiser)
            if moved or longer:
                _check_alike(ready.trainer, place, moved)
            exports = ready.trainer.state.roles.exports
            world.on_leader(lambda: place.begin(run.noted(), exports, restart))
            if finished:
                return _read(run, home)
            with place.recorded(run.trainer.steps), closing(ready.stream):
                _train(run, ready, observers, progress, say)
                models = save_students(ready.trainer, ready.model, home, card_of(run, ready))
                place.write_status("finished", run.trainer.steps, run.trainer.steps)
            return _distilled(home, models, already=False)


def _finished(run: Run, place: RunFolder) -> bool:
    """Whether it is, and what it made is still there."""
    return (
        place.finished(run.dump(), MAY_CHANGE) and (place.path / "student" / "model.json").is_file()
    )


def _train(
    run: Run,
    ready: Prepared,
    observers: Sequence[Observer],
    progress: bool | None,
    say: Callable[[str], None],
) -> None:
    trainer = ready.trainer
    assert trainer.folder is not None
    if trainer.world.is_leader:
        for line in [
            *first_lines(ready, run, looked_at(progress)),
            *unsaid(trainer, ready.model),
        ]:
            say(line)
    bar = training_progress(run.trainer.steps, trainer.folder.path.name, progress)
    with bar as show:
        trainer.fit(
            show,
            *observers,
            measures=_measuring(run, ready),
            drawing=_drawing(run, ready, say),
            say=say if trainer.world.is_leader else lambda _: None,
        )


def _check_alike(trainer: Trainer, place: RunFolder, moved: str) -> None:
    """RefusedError where what lies at other places than before is not the same, the run cannot be
    made longer, or nothing can tell: a finished run without checkpoints.
    """
    checkpoints = Checkpoints(place.checkpoints, writes=False)
    step = trainer.world.on_leader(checkpoints.newest)
    if step is not None:
        trainer.check(checkpoints.facts(step))
    elif trainer.world.on_leader(lambda: place.status().get("state") == "finished"):
        what = f"with another configuration: {moved}" if moved else "of fewer steps"
        raise RefusedError(
            f"{place.path} holds a run {what}; no checkpoint is left to tell whether the same lies "
            "there, or to go on from; choose another name=, or --restart"
        )


def checked(run: Run) -> Run:
    """The run with every option validated, as those of a file are. ValueError, a line for each that
    is wrong.
    """
    try:
        run = run.checked()
    except ValueError as error:
        raise ValueError("\n".join(option_errors(error)) or str(error)) from None
    check_base(run.adaptation, run.start or run.teacher)
    check_trackers(run.trainer)
    return run


def _measuring(run: Run, ready: Prepared) -> list[Observer]:
    if not run.trainer.health_every:
        return []
    teacher = ready.model if isinstance(run.teacher, Saved) else None
    every, device = run.trainer.health_every, ready.trainer.device
    method = ready.trainer.method
    return [Health(method, ready.nets, ready.stream, ready.held_out, teacher, device, every)]


def _drawing(run: Run, ready: Prepared, say: Callable[[str], None]) -> list[Observer]:
    found: list[Observer] = []
    place, world, config = ready.trainer.folder, ready.trainer.world, run.trainer
    assert place is not None
    if config.sample_every:
        samples, steps = place.path / "samples", config.sample_steps
        every, method = config.sample_every, ready.trainer.method
        found.append(Gallery(method, ready.model, samples, every, steps, world, say))
    if world.is_leader:
        found += trackers(config, place.path, run.dump())
    return found


def card_of(run: Run, ready: Prepared) -> dict[str, Any]:
    """What a saved model tells of the run that made it."""
    data = run.data.dump()
    data.pop("path", None)  # not where it lies on this machine: models are handed on
    dataset = ready.stream.dataset
    data |= {"fingerprint": ready.stream.fingerprint, "images": len(dataset)}
    if empty := empty_classes(dataset.labels, dataset.classes):
        data["classes_without_images"] = empty
    return {
        "method": run.method.dump(),
        "adaptation": run.adaptation.dump(),
        "trainer": run.trainer.dump(),
        "data": data,
        "ema": run.trainer.ema[0],
        "batches": ready.trainer.batches,
        **(run.start or run.teacher).told(),
    }


def _read(run: Run, folder: Path) -> Distilled:
    """What a finished run left."""
    load = run.method.trains.load
    found = {path.parent.name: load(path.parent) for path in sorted(folder.glob("*/model.json"))}
    return _distilled(folder, found, already=True)


def _distilled(folder: Path, models: dict[str, Any], already: bool) -> Distilled:
    lines = read_log(folder / "log.jsonl")
    return Distilled(folder, models, already, lines[-1] if lines else {}, verdict(lines))
